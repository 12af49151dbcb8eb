// A view's pixels under a window, and heat in colours, each as a canvas that is drawn from.

function surface(width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  return canvas;
}

export class Film {
  constructor({ about, bytes }) {
    this.width = about.width;
    this.height = about.height;
    this.most = about.bits === 16 ? 65535 : 255;
    this.pixels = about.bits === 16 ? new Uint16Array(bytes) : new Uint8Array(bytes);
    this.canvas = surface(about.width, about.height);
    this.shown = "";
  }

  // Grey from low to high, shares of the range of the pixels.
  under({ low, high, invert }) {
    const asked = `${low} ${high} ${invert}`;
    if (asked === this.shown) return this.canvas;
    const table = new Uint32Array(this.most + 1), from = low * this.most, span = Math.max((high - low) * this.most, 1);
    for (let value = 0; value <= this.most; value++) {
      let grey = Math.round(255 * Math.min(Math.max((value - from) / span, 0), 1));
      if (invert) grey = 255 - grey;
      table[value] = 0xff000000 | (grey << 16) | (grey << 8) | grey;
    }
    const context = this.canvas.getContext("2d"), image = context.createImageData(this.width, this.height);
    const out = new Uint32Array(image.data.buffer), pixels = this.pixels;
    for (let i = 0; i < pixels.length; i++) out[i] = table[pixels[i]];
    context.putImageData(image, 0, 0);
    this.shown = asked;
    return this.canvas;
  }

  // Shares of the range below which 2 % and 99.8 % of what is not background lie.
  tissue() {
    const counts = new Uint32Array(this.most + 1);
    for (const value of this.pixels) counts[value]++;
    counts[0] = 0;
    const all = counts.reduce((sum, count) => sum + count, 0);
    if (!all) return { low: 0, high: 1 };
    const at = (share) => {
      let sum = 0, value = 0;
      while (value < this.most && (sum += counts[value]) < share * all) value++;
      return value / this.most;
    };
    return { low: at(0.02), high: Math.max(at(0.998), at(0.02) + 1 / this.most) };
  }
}

// Canvases of maps [n, h, w] in 255ths: as opaque as they are hot.
export function heats({ about, bytes }, colours) {
  const [count, height, width] = about.shape, all = new Uint8Array(bytes), table = new Uint32Array(256);
  for (let value = 0; value < 256; value++) {
    const [red, green, blue] = colours.slice(3 * value, 3 * value + 3), alpha = Math.round(255 * Math.sqrt(value / 255));
    table[value] = ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0;
  }
  return Array.from({ length: count }, (_, number) => {
    const canvas = surface(width, height), context = canvas.getContext("2d"), image = context.createImageData(width, height);
    const out = new Uint32Array(image.data.buffer), start = number * height * width;
    for (let i = 0; i < out.length; i++) out[i] = table[all[start + i]];
    context.putImageData(image, 0, 0);
    return canvas;
  });
}
