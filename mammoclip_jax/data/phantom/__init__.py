"""Computer phantoms of mammography exams: images, lesions with boxes and masks, reports. Nothing in them is real."""
