"""Words that tell a name from what a radiologist writes, all in lower case."""

# A part of a person's name that is one of these says nothing: a placeholder, or how a header fills the element.
PLACEHOLDERS = frozenset(
    """
anonymous anonymized anonymised anon unknown none null nil patient test tester phantom deidentified removed redacted
xxx na tbd unspecified other self staff tech technologist technician operator radiologist radiology physician doctor
admin administrator user guest default hospital clinic mammography mammo service system public
""".split()
)
TITLES = frozenset(
    """
dr drs doctor prof professor mr mrs ms miss mister madam sir mx rev sister nurse fr herr frau mme mlle sra sr dra
""".split()
)
DEGREES = frozenset(
    """
md do phd rn rt np pa dds dmd mbbs mbchb frcr facr fsbi mph msc ms bs ba bsn msn arrt cnm cnp crnp dnp aprn lpn lvn jr
sr ii iii iv esq fellow faculty resident
""".split()
)
PARTICLES = frozenset(
    """
van von de del della der den da di do dos das du la las le los el al bin ibn ben abu ter ten st
""".split()
)
# Of relations and roles, after which a name may stand without a title.
ROLES = """
resident fellow technologist technician sonographer radiographer radiologist nurse physician intern registrar provider
surgeon oncologist pathologist clinician gynecologist internist assistant coordinator navigator interpreter
""".split()
FAMILY = """
daughter son husband wife sister mother father brother spouse partner aunt cousin niece caregiver friend
""".split()

# Initials of people that are written like these stay.
ABBREVIATIONS = frozenset(
    """
cc mlo ml lm lmo xcc xccl xccm at cv ap pa lat rt lt lr rl ri rm rs ll us mr mri ct pet bi ca dx hx rx tx sx fx px bx
md do rn np iv im id ir ic or er ed ob gyn fu yo ad lo to of in on as is it he we me my be by if no so up go an am pm
mm cm mg kg hz kv ma mas gy dcis lcis adh alh ilc idc fna cnb fdg her pr ki brca lymph acr birads cad ai dbt fov roi
svi ge uoq uiq loq liq li ui uo ant post sup inf med a p dm hrt ocp wnl nos nka prn stat bid tid qd po bcs smr ssm dep
sq fb sb fh pmh mx oc ln ls rul oa td sd se ti et al eg ie vs re st dr jr ii iii vi ix xi
""".split()
)

# Names that are ordinary words as well, in any text: taken out where they stand as a name only.
COMMON = frozenset(
    """
able abbey ace adams ages allday alley anchor angel apple april archer art ash august autumn back bacon bad bailey
baker ball banks bar barber barker barn barnes barr bass bay beach bean bear beard beck bell bend bender best better
bill bird bishop black blank blood bloom blue blunt bond bone bones book booth bounds bow bowl bowman box boy branch
brand brandy bread bridge bridges bright brook brooks brown buck bud bull burns bush butler butter call camp candy
cane cannon card carol carter case cash castle chance chase cherry chip christian church city clay clear clerk cliff
close cloud coach coal coats cobb coffin cold cole coleman comb combs comfort cook cooper cope corn corner cotton
crane crew crisp cross crow crown cruise curl curtain cutler dale dark date dawn day days dean dear deal dew diamond
dick dickens dill dolly dove down downs drake draw drew drum drummer duck duke early east easter eddy edge elder ever
fair faith fall falls farmer farrow fast faulty fern few field fields fine finger finish fish fisher fitting flag
flint flood flow flower flowers fly foot ford forest forester fox france frank free freed freeman french friend frost
fry full fuller gamble garden gardener garland gates gem gene gentle gentry gift glass glen glover gold golden good
goodman gore grace grain grand grant grass grave graves gray green greens grey ground grove guest guide guy hail hale
hall halls ham hammer hand hands hardy harm harmon harp harper hart hatch hawk hay hazel head heard heart heath held
hill hills hind hite hobby holder holiday holland holly holmes holt home hood hook hope horn house huff hunt hunter
husband iris island ivory ivy jack jade jasmine jay jewel joiner jolly joy judge july june just keen keep key keys
kidd kind king kings kiss kitchen knife knight knock lace lake lamb lance land lane large last law lawless lawn leaf
lean lee light lily lime line link lion little lock locks lodge long longer lord lot love low lowe luck lynch major
mann manual march marine mark marks marsh marshall martin mason masters may mays meadow mean means mercer mercy mild
miles mill miller mills mine mint minor mister moon moore moss mound mount mountain munch myers nail near needle new
newman night noble nobles noel noon norm normal north nurse nut oak oaks odd olive opal orange overall pace page paige
paint palm palmer parish park parker parks parson patch patient patience pearl peck pen penny pepper perry person
petty pick pickle piece pierce pike pine piper pitcher place plant plum point polish pollard pond pool poole pope
poppy porch porter post potter potts pound powder power powers presley price pride prince prior proper prudence pruitt
pulse purple quick race rain rand ranger rash raven ray read reader reason red reed reeves rice rich riches ridge ring
rise rivers river roach road roads robin rock rocks root rose roses roth rough round rowe royal ruby rule rush rust
sage sands savage sawyer school scott sea seal seals sears self shade shadow sharp shaver shell shepherd sherry shine
ship shock short shot silver singer sky small smart smith smoke snow song south spark spear spencer spice spring
springer staff star stark starr stay steel stephens stern stone storm story stout strange stream street strong sue
summer summers sung sweet swift tail tanner tate taylor teal temple terry thick thin thorn tidy tiger till tim tower
towers town townsend true trout truth tucker turk turner underwood upton vale valentine van vance vest victor violet
virginia vogue wade waits walk walker wall walls ward ware warm waters watt watts wax way weaver webb weeks well wells
west wheat wheeler white whites wild wilder will willow wills winter winters wise wolf wood woods woodward word words
worth wren wright yard yates yellow york young younger zeal marker marker's swan swann
""".split()
)
# Of those who gave their names to a finding, a disease, a device, or a method: a name only where it stands as one.
EPONYMS = frozenset(
    """
paget cooper montgomery mondor cowden poland hodgkin bloom richardson scarff nottingham gardner peutz jeghers
klinefelter turner lynch nuys bannayan riley ruvalcaba bloch sulzberger warthin li fraumeni halsted patey madden
auchincloss stewart treves kaposi hashimoto graves crohn sjogren marfan ehlers danlos raynaud tietze morgagni spence
langer sappey rotter virchow haagensen eklund cleopatra wolfe tabar boyd gail tyrer cuzick claus manchester hounsfield
kopans schiller wegener castleman rosai dorfman erdheim chester whipple bowen merkel ewing burkitt reed sternberg
birbeck allred ki luer coley homer cooperi cushing addison baker doppler gauss fourier bard parker krukenberg
phyllodes parkinson alzheimer bell trousseau hickman groshong mitek
""".split()
)
# Words that end a name where case does not tell: "DR SMITH REVIEWED THE LEFT BREAST".
NOT_NAMES = tuple(
    """
a about acr additional after again age agrees agreed all an and are as asked asymptomatic at baseline be been before
bi-rads bilateral birads both breast breasts but by called calcifications calls can cc clinic comparison complains
concurs confirmed contacted date dated dense density denies described diagnostic did digital directly discussed
electronically exam examination female final findings finding follow follow-up for from had has have her here him his
history however i id impression in indication informed interpreted is it left male mammogram mammographic mammography
mass md me medical ml mlo mrn my name no none normal not notified of office on or our over patient pager per performed
personally phone presents prior procedure radiology recommended recommendation recommendations recommends referred
report reported reports reviewed right routine said saw screening seen she he shows two three several independent
radiologists physicians technologists nurses residents review pending states stated study technique that the their
there they this time to today tomosynthesis ultrasound unknown unremarkable via views was we were when where which who
will with woman year years yesterday you technologist radiologist physician resident attending nurse given requested
verified signed dictated transcribed approved
""".split()
)
# What radiologists write: never a name where nothing but a capital says so.
CLINICAL = frozenset(NOT_NAMES) | frozenset(
    """
a about above abnormal abnormality absent accession according acr actual acute addendum additional adenopathy adenosis
adjacent admitted after again against age agree agreed agrees all almost along already also although always am
american amorphous an analog and angiolipoma anterior any apocrine apparent appearance appears approximately april
architectural are area areas areola areolar around arterial artery articles artifact artifacts as asked aspect
aspiration assessed assessment associated asymmetric asymmetries asymmetry asymptomatic at atypia atypical august
available average away axilla axillae axillary back background band baseline be because been before being below benign
best better between bi-rads bilateral bilaterally biopsies biopsy birads black body both bottom branching breast
breasts bright bring by caliber calcification calcifications calcified calcium calculated called calls cancer cancers
can cannot capsular capsule carcinoma cardiac care case cases catalog catheter categories category caucasian caudal cc
center central change changed changes chart chest chief circumscribed clearly clinic clinical clinically clip clips
clock close closed cluster clustered clusters coarse coil collapsed color comedo common communicated compare compared
comparing comparison comparisons compatible complains complete completed complex complicated composed composition
compressed compression computer concern concerning concordant conclusion concur condition confirmed consider
considered consistent consultation contacted contents contour contralateral contrast cooper copy core correlate
correlated correlation course craniocaudal current currently cyst cystic cysts cytology daily data date dated day days
decreased deep defined deformity degree delayed demonstrate demonstrated demonstrates denies dense density densities
depth described describes description despite detected detection developed developing deviation diagnosed diagnosis
diagnostic did diffuse digital dilated dimension directed direct directly discharge discontinued discordant discussed
disease displaced distal distance distinct distortion distribution do documented does done dose double ductal duct
ducts due dystrophic each early ectasia edema edge eggshell eight either electronically elevated eleven elliptical
elsewhere end enhancement enhancing enlarged enlargement entire entirely epidermal equal equivocal essentially
estimated estrogen even evidence exam examination exams examined excision excisional excluded exaggerated exists
expected explained extent extending extends extension extensive external extremely facility faint fair false family
fat fatty feature features female few fibroadenoma fibroadenomas fibrocystic fibroglandular fibrosis fibrotic field
film films final find finding findings fine first five flat fluid focal focally focus foci follow follow-up followed
following followup foot for form forms four friday from full further future gastric gel general given gland glandular
glands good grade granular granuloma group grouped growing growth gross guidance guided guidelines gynecomastia had
half halo hamartoma hand has have having he head heart height hello hematoma hence her here hereby herself
heterogeneous heterogeneously high highly him his history hodgkin hologic hormone hour hours how however hyperplasia
hypoechoic i id identified if image imaged images imaging immediate impression implant implants important in inch
include included includes including incidental inconclusive increase increased indeed indeterminate index indicate
indicated indication indistinct individual inferior inferiorly inflammatory information informed inframammary
infiltrating initial injection inner insert inspection instructed interim intermediate internal interpretation
interpreted interval intra intracystic intraductal intramammary invasion invasive inverted inversion investigation
involuting involution involved involving iodine irregular is isodense isolated it item items its itself january
jewelry july june just keloid known laboratory lactating large larger largest last lateral laterality laterally latest
layering least left length less lesion lesions letter level levels like likelihood likely limited line linear lines
lipid lipoma list lobe lobes lobular lobulated lobule local localization localized location locations long longer
longstanding look low lower lucent lump lumpectomy lumps luminal lymph lymphadenopathy lymphoma magnetic magnification
magnified mail main major male malignancy malignant mammary mammo mammogram mammograms mammographic mammographically
mammography management many march margin marginal margins marked markedly marker markers mass masses mastectomy
mastitis mastopexy material max maximal maximum may me mean measure measured measurement measurements measures
measuring medial medially medical medication mediolateral menopausal menopause metal metallic metastases metastasis
metastatic method mild mildly milk minimal minimally minimum minor missing ml mlo moderate moderately modified mole
moles monday month months more most motion moving much mucinous multicentric multidirectional multifocal multiple my
necrosis need needed needle negative neither new next nine nipple nipples no node nodes nodular nodularity nodule
nodules non none nor normal normally not note noted notes nothing notified november now number numerous obscured
obtained obvious occasional occult october of off office oil old on once oncology one ones only open opacity opacities
opinion optimal option or oral order ordered other otherwise our out outer outlined outside oval over overall overlap
overlapping overlying own paget pain palpable palpation papillary papilloma papillomas parenchyma parenchymal part
partial partially particular past pathologic pathology patient patients pattern pectoral pectoralis pending per
percent percutaneous performed perhaps periareolar peripheral person pertinent phase phone phyllodes physical
physician pigtail place placed placement plain plan please pleomorphic plus point popcorn port position positioned
positive possible possibly post posterior posteriorly postmenopausal postoperative postsurgical potential
premenopausal preoperative presence present presentation presented presents previous previously primary prior priors
probable probably problem procedure procedures process processed progesterone prominent prompt provided proximal
punctate quadrant quadrants quality question questionable radial radiation radiograph radiographic radiologic
radiologist radiology rapid rare rather reason recall received recent recently recommend recommendation
recommendations recommended reconstruction reduced reduction referral referred referring reflecting regarding region
regional regions regular related remainder remains reminder remote removal removed repeat report reported reporting
reports represent representing represents request requested resection residual resolution resolved respectively rest
result results retraction retracted retroareolar return reviewed right rim risk rod rods round routine same sarcoma
saturday saw scan scar scarring scars scattered sclerosing screening seat second secondary secretory section see seed
seen segmental self sentinel september series seroma seven several severe shape shaped she short should show showed
showing shown shows side sided sides sign signal significance significant significantly signs silicone similar simple
since single site sites situ six size sized skin slight slightly slowly small smaller smooth so soft solid solitary
some sonographic sonographically sonography soon specimen spiculated spiculation spiculations spoke spot spring
stability stable stage standard state stated states statement status step stereotactic sternal still straight strongly
structure structures studies study subareolar subcutaneous submitted subsequent subtle such suggest suggested
suggestive suggests summary sunday superficial superior superiorly supplemental surgery surgical surgically
surrounding suspected suspicious suture sutures swelling symmetric symmetrical symmetry symptom symptomatic symptoms
system tail taken tangential target targeted technical technique technologist telephone ten tender tenderness term
than that the their them then there therefore these thick thickened thickening thickness thin third this those though
three through throughout thursday tiny tissue tissues to today together tomosynthesis tomorrow too top total toward
trabecular trace transverse tram trauma treated treatment triangular true tube tubular tuesday tumor tumors twelve two
type types typical typically ultrasound unable unchanged uncertain under underlying understood unfavorable uneven
unilateral unique unknown unless unlikely unremarkable unspecified until up upon upper us use used using usual usually
validated variable variant various vascular vein velocity verified versus very via view viewed views visible
visualization visualized volume wall was we wednesday week weeks weight well were what when where whereas whether
which while white who whole whose wide width will wire with within without woman women work workup would yeast year
years yellow yes yesterday yet you young your zone african asian hispanic latina ashkenazi mother father sister
daughter son aunt cousin grandmother maternal paternal sisters brother gadolinium tamoxifen letrozole anastrozole
exemestane herceptin trastuzumab premarin estradiol lidocaine epinephrine marcaine selenia senographe pristina
mammomat inspiration revelation amulet innovality aspire giotto planmed siemens fuji fujifilm philips sectra agfa
carestream kodak lorad affirm eviva atec mammotome finesse celero bard savi scout magseed biozorb hydromark tumark
ribbon cork barrel wing trimark securmark ultraclip stereo volpara quantra icad profound transpara genius lunit
supersonic aixplorer acuson epiq logiq prone table vacuum gauge enhanced weighted resonance spectral homer mammalok
hawkins sadowsky unaltered community memorial county university teaching academic private affiliated genetics
lymphedema survivorship walk-in womens united national federal america york force preventive society network
comprehensive taxol taxotere adriamycin cytoxan arimidex faslodex femara aromasin evista zoladex lupron ibrance
kadcyla perjeta nolvadex xeloda abraxane keytruda coumadin plavix eliquis xarelto lovenox aspirin advil tylenol
xylocaine gadavist omnipaque isovue ultravist ativan valium oncotype mammaprint sentimag sentimage endomag brevera
trident faxitron mammomark gadobutrol betadine chlorhexidine dermabond steri protocol education instructions portal
name gender sex dob mrn attending emergency department medicine
""".split()
)

# Names given to people, of many countries, none of them a word above: beside one of these stands a name.
GIVEN = frozenset(
    """
aaliyah aaron abdullah abigail adam adriana agnes ahmed aisha akiko alan alana albert alejandra alejandro alessandra
alexander alexandra alexis alfred ali alice alicia alina alison allison alma amanda amber amelia amina amir amy ana
anastasia andrea andrew andrzej angela angelica angelina anita anjali ann anna anne annette annie anthony antonio
antonia arthur arturo ashley astrid audrey barbara beatrice beatriz becky benjamin bernadette bernard bernice beth
bethany betty beverly birgit bonnie brad bradley brandon brenda brent brian bridget brigitte bruce bryan caitlin carl
carla carlos carmen caroline carolyn carrie catherine cathy cecilia chantal charlene charles charlotte chelsea cheryl
chiara chloe christina christine christopher cindy claire clara clarence claudia colleen connie constance corinne
craig cristina crystal curtis cynthia daisy daniel daniela danielle darlene david deborah debra deepa denise dennis
derek diana diane diego dmitri dolores dominique donald donna dora doris dorothy douglas earl edith eduardo edward
edwin eileen elaine eleanor elena elisa elizabeth ella ellen elsa emilia emily emma enrique eric erica erin ernest
esther ethel eugene eva evelyn fatima fatou felicia felipe fernando fiona florence frances francesca francisco franco
francois frederick gabriela gail gary genevieve george georgina gerald geraldine gertrude gina giovanni giulia gladys
glenda gloria gordon greg gregory greta guadalupe gwendolyn hannah hans harold harriet harry hassan heather heidi
helen helena henry hector hilda hiroshi howard hugo ian ibrahim ida imani ines inga ingrid irene irina irma isabel
isabella ivan jackie jacob jacqueline jaime james jamie jane janet janice janine jared jason javier jean jeanne jeff
jeffrey jennifer jenny jeremy jerome jessica jill jim joan joann joanna joanne joe joel johanna john johnny jon
jonathan jorge jose joseph josephine joshua joyce juan juana juanita judith judy julia julian juliana julie justin
kaitlyn karen karin karl katarzyna kate katharine katherine kathleen kathryn kathy katie kayla keiko keith kelly
kenneth kenji kerry kevin khadija kim kimberly krista kristen kristin kristina kurt kyle lakshmi larry latoya laura
lauren laurie lawrence leah leila lena leo leon leonard leslie leticia li liam lidia linda lisa lois lorena lori
lorraine louis louise lucas lucia lucille lucy luis luisa luke lydia lynn mabel madeline maggie malik marcia marcus
margaret margarita maria mariam marian marie marilyn marina mario marion marisol marjorie marlene marta martha marvin
mary maryam mateo matthew maureen maurice maxine megan mei melanie melinda melissa mercedes meredith michael michelle
miguel mikhail mildred milena mindy minh miriam mohamed mohammed molly monica monika monique muhammad muriel myrtle
nadia nadine nancy naomi natalia natalie natasha nathan nell nguyen nicholas nicole nikolai nina noah nora noreen
norma olga olivia omar oscar pablo pamela paola patricia patrick paul paula pauline pedro peggy peter philip phillip
phyllis pierre piotr priya rachel rafael raj rajesh ralph ramona ramon randy raquel ravi raymond rebecca regina renee
rhonda ricardo richard rita robert roberta roberto rodney roger roland ronald rosa rosalie rosario rosemary ross
roxanne roy russell ruth ryan sabrina sadie sally salma sam samantha samuel sandra sanjay sara sarah sasha sean sergei
sergio sharon shaun sheila shelby sherri shirley silvia simone sofia sonia sonya sophia sophie stacey stacy stanley
stella stephanie stephen steve steven stuart susan suzanne svetlana sven sylvia tamara tammy tanya tara tatiana ted
teresa thelma theodore theresa thomas tiffany tina todd tom tomasz toni tony tracy travis trevor tricia ulrike ursula
valerie vanessa vera verna veronica vicki victoria vincent vivian vladimir walter wanda wayne wei wendy wilhelm
william willie wilma xavier ximena yasmin yolanda yoko yusuf yvette yvonne zachary zainab zoe
""".split()
)
