"""Penn-Treebank tokens of captions, for caption metrics without Java.

BLEU, ROUGE and CIDEr compare across papers only over the tokens of COCO's evaluation: Stanford's PTBTokenizer 3.4.1 as
pycocoevalcap calls it, lower-cased, punctuation removed. `Don't!` becomes `do n't`, `(red)` becomes `-lrb- red -rrb-`
(the list of punctuation names the brackets in upper case, so they stay), `1 1/2` one token with a no-break space. The
rules were found by running that program on some 400,000 made-up words and lines; they translate no code of it.

A longest match: at each place every rule says how far it reaches, the longest wins, the first among equals. What a
rule only looks ahead at counts as reached: `don't` is `do` + `n't`, not `don` + `'` + `t`. Rare signs (emoticons, web
addresses, scripts without spaces) follow the program only roughly, and a caption does not see the next one, while
the program, which reads all in one file, joins `no.` and `5` over the end of a line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial

# removed after tokenising, as in pycocoevalcap
_MARKS = "'' ' `` ` -LRB- -RRB- -LCB- -RCB- . ? ! , : - -- ... ;"
PUNCTUATION = frozenset(_MARKS.split())

PAIRS = {  # one word, two tokens
    "cannot": ("can", "not"),
    "gonna": ("gon", "na"),
    "gotta": ("got", "ta"),
    "wanna": ("wan", "na"),
    "lemme": ("lem", "me"),
    "gimme": ("gim", "me"),
}
# abbreviations that keep their full stop, in any case
ABBREVIATIONS = """
    mr mrs ms mme mlle messrs dr drs prof profs rev hon esq jr sr st ste mt ft rd sq ct blvd ave alex wm jos msgr
    gen brig col cpl capt cmdr comdr lt lieut maj sgt pfc spc sfc pvt ens adm supt insp gov govs pres rep reps sen sens
    asst atty attys treas inc co cos corp ltd plc bros bhd cie pte pty assn assoc dept univ bldg natl intl det sys elec
    jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri invt tel ext est etc al cf vs seq
    ala ariz calif colo conn dak fla ga ind kan kans ky md mich minn mo mont neb nev okla penn tenn va vt wis wisc wyo
    rt adj adv ph.d ph
"""
CAPITALISED = "Ala Ark Az Del Ill La Mass Miss Ore Pa Tex Wash Mfg Mtg mfg mtg"  # in lower case some are plain words
BEFORE_NUMBERS = "no nos fig figs p pp art ca op prop"
CURRENCIES = {"€": "$", "¤": "$", "£": "#", "¢": "cents"}
FRACTIONS = {"½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}

RAISED = "²³¹¼-¾\u2070-\u2089\u2150-\u218b\u2460-\u24ff\u2776-\u2793"  # numerals to Python, signs to the program
MARKS = "\u02c2-\u036f"  # accents after their letter
L = rf"(?:[^\W\d_{RAISED}]|[{MARKS}])"  # a letter of any script
A = rf"(?:[^\W_{RAISED}]|[{MARKS}])"  # a letter or digit
LD = r"[A-Za-z0-9]"
SUFFIX = "[smd]|ll|re|ve"
ACRONYM = rf"{L}(?:\.{L})+(?!{L})"
ELIDED = rf"(?:[dol]['’](?={L}{L}))?"  # o'clock, d'oeuvre
# every other sign is dropped, and parts words as a space does
SIGNS = "!-/:-@[-`{-~¡¥-©¬®-´¶-¹¿×÷‖‗‚„-‣‰-‸※‾-⁂⁄\u2070-\u208e₤\u2100-\u2bff、。〒・！-／：-＠［-｀｛-･"

Action = Callable[[str], list[str]]


def _either(words: str) -> str:
    return "(?:" + "|".join(re.escape(word) for word in sorted(words.split(), key=len, reverse=True)) + ")"


def _whole(text: str) -> list[str]:
    return [text]


def _always(token: str, _: str) -> list[str]:
    return [token]


def _look_up(table: Mapping[str, str], text: str) -> list[str]:
    return [table[text]]


def _spelt_out(text: str) -> list[str]:
    """One token, whatever is in it: brackets by name, spaces as no-break spaces."""
    return [text.replace("(", "-lrb-").replace(")", "-rrb-").replace(" ", "\u00a0")]


def _straight(text: str) -> list[str]:
    return [text.replace("’", "'").replace("‘", "`")]


# (pattern, tokens of its text); of a pattern with a group, the group is taken and the rest only looked at
RULES: list[tuple[str, Action]] = [
    # contractions and endings
    (rf"(?i:({L}+)n['’‘`]t)", _whole),
    (r"(?i:n['’‘`]t)", _straight),
    (rf"(?i:({A}+)['’](?:{SUFFIX}))", _whole),
    (rf"(?i:'(?:{SUFFIX})(?!{L})|’(?:{SUFFIX}))", _straight),  # after ’ the program does not look further
    (r"(?i:('t)(?:is|was))", _whole),
    (_either(" ".join(PAIRS)).join(("(?i:", ")")), lambda word: list(PAIRS[word.lower()])),
    # words with an apostrophe of their own
    (r"['’][nN]['’]|'[nN](?=\s|$)|’[nN]|(?i:['’](?:em|til|cause))", _whole),
    (r"['’][2-9]0[sS]|['’]\d\d(?=\s|$)", _whole),
    (rf"(?i:[dol]['’]{A}{{2,}})|[A-HJ-XZn]['’]{L}{{2,}}|[A-Za-z]+[aeiouyAEIOUY]['’][aeiouAEIOU][A-Za-z]*", _whole),
    (rf"(?i:e'er|nor'easter|c'mon|s'mores|ev'ry|nat'l|li'l|cap'n|c'est|ol['’](?!{L})|somethin'|dunkin')", _whole),
    (rf"(?i:[djl]['’]|(y['’]){L})", _whole),
    # words
    (rf"{A}(?:{A}|\u00ad|[‐‑]{A})*", lambda word: [word.replace("\u00ad", "")]),
    (rf"(?i:{ELIDED}{A}+(?:[-_]{ELIDED}{A}+)+)", _whole),
    (rf"{LD}[A-Za-z0-9.,]*(?:-(?:{ACRONYM}\.|{LD}+))+", _whole),
    (rf"({LD}[A-Za-z0-9]*(?:-{LD}+)*\.)[,;:]", _whole),
    (rf"{LD}+(?:-[A-Za-z]+){{0,2}}(?:/{LD}+(?:-[A-Za-z]+){{0,2}}){{1,2}}", _whole),
    (rf"{L}{A}*(?:[.!?]{L}{A}*)+", _whole),
    (rf"{ACRONYM}\.?|{L}\.", _whole),
    (rf"(?i:{_either(ABBREVIATIONS)}\.)|{_either(CAPITALISED + ' ' + CAPITALISED.upper())}\.", _whole),
    (rf"(?i:({_either(BEFORE_NUMBERS)}\.)\s?\d)", _whole),
    (r"[A-Z]+(?:&(?:amp;)?[A-Z]+)+", lambda text: [text.replace("&amp;", "&")]),
    (r"[cC](?:\+\+|#)|#[A-Za-z]+|@[A-Za-z_]\w*|-[lrLR][rscRSC][bB]-", _whole),
    # numbers
    (r"[-+]?(?:\d*(?:[.:,]\d+)+|\d+)", _whole),
    (rf"v?(?:\d+\.)+[xX](?!{A})", _whole),
    (r"(?:\d{1,4}[- \u00a0])?\d{1,4}[/⁄]\d{1,4}", _spelt_out),
    (r"(?:\+?\d{2,4}[- \u00a0])?(?:\(\d{2,3}\)[ \u00a0]?|\d{2,4}[- \u00a0])\d{3,4}[- \u00a0]\d{3,5}", _spelt_out),
    (r"[A-Z]*\$", _whole),
    (f"[{''.join(CURRENCIES)}]", partial(_look_up, CURRENCIES)),
    (f"[{''.join(FRACTIONS)}]", partial(_look_up, FRACTIONS)),
    # signs
    (r"\.{3,}|\.(?: \.){2,}|…", partial(_always, "...")),
    (r"-{2,4}|[–—―]", partial(_always, "--")),
    (r"[?!]+|-{5,}|\*+|_+|#+|<<|>>", _whole),
    (r"\(", partial(_always, "-lrb-")),
    (r"\)", partial(_always, "-rrb-")),
    (r"\[", partial(_always, "-lsb-")),
    (r"\]", partial(_always, "-rsb-")),
    (r"\{", partial(_always, "-lcb-")),
    (r"\}", partial(_always, "-rcb-")),
    (r"&quot;|''|``|[\"'’‘“”«»‹›`\u0091-\u0094]", partial(_always, "''")),
    (r"&(?:amp;)?", partial(_always, "&")),
    (r"&lt;", partial(_always, "<")),
    (r"&gt;", partial(_always, ">")),
    # addresses, tags, faces
    (r"[\w.:-]+@[\w-]+(?:\.[\w-]+)*|<[\w.-]+@[\w-]+(?:\.[\w-]+)*>", _whole),
    (r"https?://[^\s<>\"(){}.!?,]+(?:[.!?,]+[^\s<>\"(){}.!?,]+)+", _whole),
    (r"(?:\w+\.)+(?:com|net|org|edu)(?:/[^\s<>\"(){}.!?,]*(?:[.!?,]+[^\s<>\"(){}.!?,]+)*)?", _whole),
    (r"</?[A-Za-z][\w.:-]*/?>|<[A-Za-z][\w.:-]*(?: [\w.:-]+(?:=(?:'[^'<>\s]*'|\"[^\"<>\s]*\"))?)* ?/?>", _spelt_out),
    (r"<!--[^<>]*-->", _spelt_out),
    (rf"[<>]?[:;=][-'o]?[()DPp\]\[](?!{A})|[:;=][dO@|{{](?!{A})|:-[O|]", _spelt_out),
    (r"[-^=>]_[-^=<]|\((?:-_?-|\^_?\^)\)", _spelt_out),
    (f"[{SIGNS}]", _whole),
]
_RULES = [(re.compile(pattern), action) for pattern, action in RULES]
_PLAIN = re.compile(rf"{L}+(?=\s|$)")
# what ends a line for Java, and so would shift all captions after it
LINE_ENDS = re.compile(r"[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]")


def ptb_tokens(text: str) -> list[str]:
    """The tokens of one caption, lower-case, without punctuation."""
    return [token for token in map(str.lower, _raw(_on_one_line(text))) if token not in PUNCTUATION]


def _on_one_line(text: str) -> str:
    """On one line, without the two entities that may occur inside a word."""
    return LINE_ENDS.sub(" ", text).replace("&apos;", "'").replace("&nbsp;", " ")


def _raw(text: str) -> Iterator[str]:
    """Tokens in the case of the text, punctuation included."""
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        plain = _PLAIN.match(text, at)
        if plain and plain[0].lower() not in PAIRS:  # most words of most captions need no rules
            yield plain[0]
            at = plain.end()
            continue
        best, reached = None, at
        for pattern, action in _RULES:
            match = pattern.match(text, at)
            if match and match.end() > reached:
                best, reached = (match, action), match.end()
        if best is None:  # a sign that the program drops
            at += 1
            continue
        match, action = best
        group = match.lastindex or 0
        yield from action(match[group])
        at = match.end(group)
