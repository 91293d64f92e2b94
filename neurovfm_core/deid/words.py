"""The closed vocabularies that free text is reduced to.

A deny-list has to foresee every name; a vocabulary does not. Anything outside it
is dropped, so a description loses its "Dr Miller, room 12" and keeps "t2 tse ax".
"""

import re
from collections.abc import Collection, Iterable

_TECHNICAL_WORDS = """
    2d 3d 3plane 4d aahead adc add aif ais anat angio angiogram angiography apparent arterial asl asset ax axial
    axials bffe blade blood bold bolus bone bonekernel bp brain brainlab bravo bravo3d bv c2c cbf cbv ce
    cerebral cervical circle ciss coefficient cisternography combined contrast cor coronal csf csi ct cta cth ctp
    ctv cube d dark data dce delay delayed deriv derived dess diff diffusion dir dixon dose drive dsc
    dti dual dwi dwibs dynamic e1 e2 e3 eadc early echo echo1 echo2 ecoplanar ep ep2d epi epirt et eval
    exam exp expadc exponential ext fa face facial fast fat fatsat fc fd fe ffe fgre field fieldmap
    fiesta fiex filt filtered fl fl2d fl3d flair flash flow fluid fmap fmri fov fr frfse fs fsat fse
    fseir fspgr func functional gad gado gadolinium gd gkv gr gradient grase gre haste head helical heme
    hemo high hires hirn hr iac iacs iam in innenohr inner inphase inplane inv inverse inversion ir
    irfse irfspgr iso isotropic ivim joint kernel kontrast kopf kopfhals kranial ktm lat lateral lava
    leer left lo loc localiser localizer locator low lower lung m0 mag magnitude map mapping maps mask
    mastoid mb mdc mean medic medulla memp merge midline min minip mip mip3d mm mnip moco motion mp2rage
    mpgr mpr mpr3d mprage mr mra mri mrt mrv mt mtc mtt multi multiecho multiplanar nativ native nav
    navi nc nd ne neck neg noncon noncontrast none norm normal obl oblique opp opposed optic orbit
    orbita orbital orbits pas pass pc pca pd pdw perf perfusion pet petrous ph phase phases pi pilot
    pituitary plain plan plane planes planning post postcon posterior postgad pre precon precontrast
    projection propeller prosp proton psir qc qsm radial raw rcbf rcbv real recon recons ref reference
    reformat reformats reformatted report resolve rest resting right rim rot rotating routine rs rsfmri
    run sag sagit sagittal sat scan schaedel scout sct se seg segm sella sems sense seq sequential
    series shoulder sinus sinuses skull skullbase slab slice slices slow smooth sms soft softtissue
    space spair spc spect spectro spectroscopy spgr spin spine spir spiral spoiled src ss ssfse ssh
    standard std stealth stem stereo stir stn stroke sub sub1 subtracted subtraction summary surv survey
    surview sv svs swan swi swip t1 t1c t1gd t1rho t1w t2 t2s t2star t2w task te temp temporal tensor
    test tfe tfi tfl thick thin thins ti tilt tirm tissue tle tmax tof topo topogram topogramm tr tra
    trace tracew tracking trans transversal transverse trauma triggered true truefisp trufi tse ttp
    turbo twist unenhanced upper ute v venogram venography venous vessel vessels vibe view vista vol
    t2* fsp gre3d arms vols volume vr vs w warp water weight weighted wfs wi with without wm wo xa xd
"""
TECHNICAL_WORDS = frozenset(_TECHNICAL_WORDS.split())
"""Lower-case words of protocol and series names: physics, vendors' product names, anatomy, directions."""

TECHNICAL_PATTERN = re.compile(
    r"""
      [bhijqtdu][a-z]?\d\d[fshmu]?          # Siemens kernels: H42s, Br40f
    | fc\d\d                                # Toshiba kernels
    | b(?:0|50|[1-9]\d?00|[1-4]\d{3})       # b-values
    | \d{1,2}(?:\.\d{1,2})?mm               # thickness
    | t[12]w?(?:fl|tse|se|fse|tir|spc|ffe|tfe|flair)?(?:2d|3d)?
    """,
    re.VERBOSE,
)

_MODEL_WORDS = """
    achieva aera altea amira ambition aquilion architect arcoss artist as avanto biograph ct brightspeed
    brilliance brivo cima confirm connectome discovery dot dstream echelon edge elan elition emotion
    espree essential essenza evo evolution excite explorer fit flash force free galan gemini go hdx hdxt
    hispeed horizon i ict ingenia ingenuity intera iqon lightning lightspeed lumina magnetom magnus
    marconi max mobile mr mr450 mr450w mr750 mr750w multiva mx mx8000 naeotom one open optima orian
    oasis oval panorama perspective pet pioneer plus premier prime prisma pro quantum revolution
    scenaria select sensation signa silver skyra skylight smart sola somatom spectra speed spirit
    symphony s sr terra tim titan top trio triotim ultra uct umr up vantage verio vida viato vision
    volume voyager vct x xr xt xtreme apex definition drive edge+ prismafit prisma_fit trillium 1 2 3 7
    16 20 32 40 64 80 128 256 320 450 512 530 550 560 570 580 660 670 710 750 760 770 780 790 850 880
    960
"""
MODEL_WORDS = frozenset(_MODEL_WORDS.split())
MODEL_PATTERN = re.compile(r"(?:u?mr|u?ct)\d{1,4}w?|\d(?:\.\d{1,2})?t")

MANUFACTURERS = {
    "siemens": "SIEMENS",
    "ge": "GE MEDICAL SYSTEMS",
    "general electric": "GE MEDICAL SYSTEMS",
    "philips": "Philips Medical Systems",
    "toshiba": "TOSHIBA",
    "canon": "CANON_MEC",
    "uih": "UIH",
    "united imaging": "UIH",
    "hitachi": "Hitachi Medical Corporation",
    "fujifilm": "FUJIFILM",
    "esaote": "Esaote",
    "neurologica": "NeuroLogica",
    "samsung": "SAMSUNG",
    "hyperfine": "Hyperfine",
    "neusoft": "Neusoft",
}
"""Start of the name as written, in lower case, and the one spelling it becomes."""

SEQUENCE_NAME = re.compile(
    r"\*?(?:ep|epfid|epse|epsp|fl|tfl|tse|tir|tirB|spc|spcir|spcR|spcB|se|swi|fse|gre|h|tof|fi|me|medic|hemo|fast)"
    r"(?:_?(?:fid|r|rr|B|M|m|ns|b\d{1,4}t?|\d{1,3}d?\d{0,3}|[23]d\d{0,3}|t))*"
)
KERNEL = re.compile(
    r"[BHIJQTDU][a-z]?\d\d[fshmu]?|FC\d\d|[1-5]|[A-E]|[UY][A-D]|EB|EC|L"
    r"|STANDARD|SOFT|BONE|BONEPLUS|DETAIL|LUNG|EDGE|ULTRA|CHEST|HD|[BHCL]_(?:SOFT|SHARP|VSHARP)_[A-D]",
)


def split_words(text: str) -> list[str]:
    """Split a description at whatever separates words in protocol names."""
    return re.findall(r"[A-Za-z]*\d+(?:\.\d+)?[A-Za-z]+\d*|[A-Za-z0-9*]+", text.replace("_", " "))


def technical(text: str, more_words: Collection[str] = ()) -> str:
    """Return the known technical words of a description, lower case, in their order.

    Examples
    --------
    >>> technical("T2_TSE_tra 5.0mm  MILLER JOHN, room 12")
    't2 tse tra 5.0mm'
    """
    return " ".join(_known(split_words(text), TECHNICAL_WORDS, TECHNICAL_PATTERN, more_words))


def model(text: str, more_words: Collection[str] = ()) -> str:
    """Return the known words of a scanner's model name, as they were written.

    Examples
    --------
    >>> model("SOMATOM Definition AS (Room Miller)")
    'SOMATOM Definition AS'
    """
    words = [word for word in re.split(r"[\s(),;]+", text) if word]
    return " ".join(
        word
        for word in words
        if word.lower() in MODEL_WORDS or word.lower() in more_words or MODEL_PATTERN.fullmatch(word.lower())
    )


def manufacturer(text: str) -> str:
    """Return the one spelling of a known manufacturer, "" for an unknown one.

    Examples
    --------
    >>> manufacturer("GE Healthcare, Dr. Miller's scanner")
    'GE MEDICAL SYSTEMS'
    """
    lower = text.strip().lower()
    for start, name in MANUFACTURERS.items():
        if lower.startswith(start) and not lower[len(start) : len(start) + 1].isalpha():
            return name
    return ""


def _known(
    words: Iterable[str], vocabulary: Collection[str], pattern: re.Pattern[str], more: Collection[str]
) -> Iterable[str]:
    for word in words:
        lower = word.lower()
        if lower in vocabulary or lower in more or pattern.fullmatch(lower):
            yield lower
