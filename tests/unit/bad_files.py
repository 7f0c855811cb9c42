"""Bad configs and what `selfreward check c.yaml WORDS` says of each: name -> (the file, the words, the lines after `error: `).

The files are as people write them; see test_bad_configs.
"""

Table = dict[str, tuple[str | bytes, tuple[str, ...], str]]

_BOMB = "name: a\na: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in ("ab", "bc", "cd", "de", "ef", "fg", "gh")
)
"""Seven lines that spell a hundred million values."""

# fmt: off
SYNTAX: Table = {
    "control": (
        b'name: a\x00b\n', (),
        "c.yaml line 1: is not valid YAML: the character 0x0000 has no place in a text",
    ),
    "no yaml": (
        "name: [a\n", (),
        "c.yaml line 2: is not valid YAML: it ends before a bracket or a quotation mark is closed",
    ),
    "colon": (
        "name: a: b\n", (),
        "c.yaml line 1: is not valid YAML: a value holds ': '; put it in quotes",
    ),
    "quote": (
        "name: 'a\n", (),
        "c.yaml line 2: is not valid YAML: found unexpected end of stream",
    ),
    "empty": (
        "", (),
        "c.yaml is empty; it must hold settings, at least name: NAME",
    ),
    "only comments": (
        "# name: a\n", (),
        "c.yaml is empty; it must hold settings, at least name: NAME",
    ),
    "a list": (
        "- name: a\n", (),
        "c.yaml must hold a mapping of settings at its top level, not a list",
    ),
    "one value": (
        "demo\n", (),
        "c.yaml must hold a mapping of settings at its top level, not one value",
    ),
    "two documents": (
        "name: a\n---\nname: b\n", (),
        "c.yaml line 2: is not valid YAML: a second document begins (---); a config is one",
    ),
    "not utf-8": (
        b'name: caf\xe9\n', (),
        "c.yaml is not UTF-8 text: byte 0xe9 at place 9; save it as UTF-8",
    ),
    "unquoted": (
        "name: a\npropose: {template: @file}\n", (),
        "c.yaml line 2: is not valid YAML: found character '@' that cannot start any token; put the value in quotes",
    ),
    "tab": (
        "name: a\ndpo:\n\tbeta: 0.2\n", (),
        "c.yaml line 3: is not valid YAML: there is a tab; indent with blanks",
    ),
    "key twice": (
        "name: a\ndpo:\n  beta: 0.1\n  beta: 0.2\n", (),
        "c.yaml line 4: 'beta' is set twice, first in line 3; remove one",
    ),
    "section twice": (
        "name: a\ndpo: {beta: 0.1}\nsft: {}\ndpo: {beta: 0.2}\n", (),
        "c.yaml line 4: 'dpo' is set twice, first in line 2; remove one",
    ),
    "alias unknown": (
        "name: *a\n", (),
        "c.yaml line 1: is not valid YAML: an alias (*) names no anchor (&)",
    ),
    "alias bomb": (
        _BOMB, (),
        "c.yaml line 2: its aliases spell more than 20,000 values; write out what is meant",
    ),
    "alias in itself": (
        "name: a\nseed: &s {sources: [*s]}\n", (),
        "c.yaml line 2: an alias (*) stands inside of what it names",
    ),
    "merge of a list": (
        "name: a\ndpo: {<<: 3}\n", (),
        "c.yaml line 2: << takes a mapping, or a list of them",
    ),
    "deep": (
        "name: " + "[" * 60 + "]" * 60, (),
        "c.yaml line 1: is nested deeper than 40 levels",
    ),
    "very deep": (
        "name: " + "[" * 9000 + "]" * 9000, (),
        "c.yaml is nested deeper than 40 levels",
    ),
    "too large": (
        "name: a\n" + "# x\n" * 20_000, (),
        "c.yaml has 80,008 characters; a config has 65,536 at most",
    ),
    "python tag": (
        "name: !!python/object/apply:os.system [ls]\n", (),
        "c.yaml line 1: the tag 'tag:yaml.org,2002:python/object/apply:os.system' is not read; write the value itself",
    ),
    "date tag": (
        "name: !!timestamp 2024-01-01\n", (),
        "c.yaml line 1: the tag 'tag:yaml.org,2002:timestamp' is not read; write the value itself",
    ),
    "number as key": (
        "name: a\n1: 2\n", (),
        "c.yaml line 2: the key '1' is no text; settings have names",
    ),
    "empty key": (
        "name: a\n: 2\n", (),
        "c.yaml line 2: is not valid YAML: expected <block end>, but found ':'",
    ),
    "octal": (
        "name: a\nnum_rounds: 010\n", (),
        "c.yaml line 2: '010' begins with 0, which may mean octal; leave the 0 out, or put a text in quotes",
    ),
    "huge int": (
        "name: a\nnum_rounds: " + "9" * 5000, (),
        "c.yaml line 2: '99999999999999999999999999999999999999999999999999999999999... is no number that can be read",
    ),
}
"""Texts that are no YAML, or YAML that means something surprising."""

VALUES: Table = {
    "mode null": (
        "name: a\nmode:\n", (),
        "c.yaml line 2: mode is empty and must be one of self-rewarding, no-eft",
    ),
    "no name": (
        "num_rounds: 1\n", (),
        "c.yaml: setting 'name' is required",
    ),
    "name bad": (
        "name: a/b\n", (),
        "c.yaml line 1: name='a/b' must look like ^[A-Za-z0-9][A-Za-z0-9._-]*$",
    ),
    "name empty": (
        "name: ''\n", (),
        "c.yaml line 1: name='' must not be empty",
    ),
    "name number": (
        "name: 2024\n", (),
        'c.yaml line 1: name=2024 must be a text; in quotes it is one: "2024"',
    ),
    "name number shell": (
        "name: a\n", ("name=2024",),
        'command line: name=2024 must be a text; in quotes it is one: \'name="2024"\'',
    ),
    "unknown key": (
        "name: a\ndpo: {learing_rate: 1}\n", (),
        "c.yaml line 2: unknown setting 'dpo.learing_rate'; did you mean 'learning_rate'?",
    ),
    "unknown section": (
        "name: a\nsampling: {}\n", (),
        "c.yaml line 2: unknown setting 'sampling'; did you mean 'sample'?",
    ),
    "key elsewhere": (
        "name: a\nbeta: 0.2\n", (),
        "c.yaml line 2: unknown setting 'beta'; did you mean 'dpo.beta'?",
    ),
    "key elsewhere 2": (
        "name: a\ntop_p: 0.2\n", (),
        "c.yaml line 2: unknown setting 'top_p'; did you mean 'propose.top_p' or 'sample.top_p' or 'judge.top_p'?",
    ),
    "nothing near": (
        "name: a\ndpo: {zzz: 1}\n", (),
        "c.yaml line 2: unknown setting 'dpo.zzz'; known here: learning_rate, final_learning_rate, warmup_ratio, "
        "num_epochs, batch_size, micro_batch_size, max_length, weight_decay, max_grad_norm, dropout, "
        "gradient_checkpointing, bf16, method, beta, nll_weight",
    ),
    "unknown of source": (
        "name: a\nseed: {sources: [{format: lab}, {roll: ift, path: x}]}\n", (),
        "c.yaml line 2: unknown setting 'seed.sources[1].roll'; did you mean 'role'?",
    ),
    "empty section": (
        "name: a\ndpo:\n", (),
        "c.yaml line 2: dpo is empty; put settings below it, or remove it",
    ),
    "section number": (
        "name: a\ndpo: 3\n", (),
        "c.yaml line 2: dpo=3 must be a mapping of settings",
    ),
    "section list": (
        "name: a\ndpo: [1]\n", (),
        "c.yaml line 2: dpo=[1] must be a mapping of settings",
    ),
    "int text": (
        "name: a\nnum_rounds: two\n", (),
        "c.yaml line 2: num_rounds='two' must be a whole number",
    ),
    "int frac": (
        "name: a\nnum_rounds: 1.5\n", (),
        "c.yaml line 2: num_rounds=1.5 must be a whole number",
    ),
    "int bool": (
        "name: a\nnum_rounds: true\n", (),
        "c.yaml line 2: num_rounds='true' must be a whole number",
    ),
    "float yes": (
        "name: a\ndpo: {beta: yes}\n", (),
        "c.yaml line 2: dpo.beta='yes' must be a number",
    ),
    "negative": (
        "name: a\nnum_rounds: -1\n", (),
        "c.yaml line 2: num_rounds=-1 must be at least 0",
    ),
    "zero": (
        "name: a\nseed: {num_ift: 0}\n", (),
        "c.yaml line 2: seed.num_ift=0 must be at least 1",
    ),
    "nan": (
        "name: a\ndpo: {learning_rate: .nan}\n", (),
        "c.yaml line 2: dpo.learning_rate=nan must be a finite number",
    ),
    "inf": (
        "name: a\nsft: {learning_rate: .inf}\n", (),
        "c.yaml line 2: sft.learning_rate=inf must be a finite number",
    ),
    "1e400": (
        "name: a\nsft: {learning_rate: 1e400}\n", (),
        "c.yaml line 2: sft.learning_rate=inf must be a finite number",
    ),
    "nan word": (
        "name: a\nsft: {learning_rate: nan}\n", (),
        "c.yaml line 2: sft.learning_rate='nan' must be a finite number",
    ),
    "bool": (
        "name: a\neval: {oracle: maybe}\n", (),
        "c.yaml line 2: eval.oracle='maybe' must be true or false",
    ),
    "literal": (
        "name: a\nengine: {name: sglang}\n", (),
        "c.yaml line 2: engine.name='sglang' must be one of hf, vllm, scripted",
    ),
    "literal near": (
        "name: a\ndpo: {method: positive-only}\n", (),
        "c.yaml line 2: dpo.method='positive-only' must be one of dpo, positives-only; did you mean 'positives-only'?",
    ),
    "path number": (
        "name: a\nmodel: {path: 7}\n", (),
        'c.yaml line 2: model.path=7 must be a text; in quotes it is one: "7"',
    ),
    "run_dir number": (
        "name: a\nrun_dir: 1.5\n", (),
        'c.yaml line 2: run_dir=1.5 must be a text; in quotes it is one: "1.5"',
    ),
    "list text": (
        "name: a\npropose: {banned_words: image}\n", (),
        "c.yaml line 2: propose.banned_words='image' must be a list, such as [a, b]",
    ),
    "top_p": (
        "name: a\nsample: {top_p: 1.5}\n", (),
        "c.yaml line 2: sample.top_p=1.5 must be at most 1",
    ),
    "interpolation": (
        "name: a\nmodel: {path: '${oc.env:MODEL}'}\n", (),
        "c.yaml line 2: model.path='${oc.env:MODEL}': nothing is filled in for ${...}; write the value, or give it "
        'on the command line, where the shell fills in: model.path="$NAME"',
    ),
    "interpolation2": (
        "name: a\nrun_dir: ${name}\n", (),
        "c.yaml line 2: run_dir='${name}': nothing is filled in for ${...}; write the value, or give it on the "
        'command line, where the shell fills in: run_dir="$NAME"',
    ),
    "api key": (
        "name: a\nendpoints: {far: {base_url: 'http://h/v1', model: m, api_key: hunter2}}\n", (),
        "c.yaml line 2: unknown setting 'endpoints.far.api_key': a config holds no secret: export it in an "
        "environment variable (an endpoint's is named in its api_key_env)",
    ),
    "api key top": (
        "name: a\nopenai_api_key: hunter2\n", (),
        "c.yaml line 2: unknown setting 'openai_api_key': a config holds no secret: export it in an environment "
        "variable (an endpoint's is named in its api_key_env)",
    ),
    "key in value": (
        "name: a\njudge: {model: sk-abcdefghijklmnop1234}\n", (),
        "c.yaml line 2: judge.model looks like a secret key; a config holds no secret: export it in an environment "
        "variable (an endpoint's is named in its api_key_env)",
    ),
    "hf token": (
        "name: a\nmodel: {path: hf_abcdefghijklmnop1234}\n", (),
        "c.yaml line 2: model.path looks like a secret key; a config holds no secret: export it in an environment "
        "variable (an endpoint's is named in its api_key_env)",
    ),
    "user in url": (
        "name: a\nendpoints: {far: {base_url: 'http://me:hunter2@h/v1', model: m}}\n", (),
        "c.yaml line 2: endpoints.far.base_url looks like a user and password; a config holds no secret: export it "
        "in an environment variable (an endpoint's is named in its api_key_env)",
    ),
    "key as env": (
        "name: a\nendpoints: {far: {base_url: 'http://h/v1', model: m, api_key_env: hunter2}}\n", (),
        "c.yaml line 2: endpoints.far.api_key_env: api_key_env must be the name of an environment variable, in "
        "capitals (A-Z, 0-9, _), never the key itself",
    ),
    "key in shell": (
        "name: a\n", ("endpoints.far.api_key=hunter2", "endpoints.far.base_url=http://h/v1", "endpoints.far.model=m",),
        "command line: unknown setting 'endpoints.far.api_key': a config holds no secret: export it in an "
        "environment variable (an endpoint's is named in its api_key_env)",
    ),
    "shell typo": (
        "name: a\n", ("dpo.learing_rate=1",),
        "command line: unknown setting 'dpo.learing_rate'; did you mean 'learning_rate'?",
    ),
    "shell type": (
        "name: a\n", ("dpo.beta=many",),
        "command line: dpo.beta='many' must be a number",
    ),
    "shell no =": (
        "name: a\n", ("dpo.beta",),
        "command line: 'dpo.beta' must look like section.key=value",
    ),
    "shell no key": (
        "name: a\n", ("=3",),
        "command line: '=3' must look like section.key=value",
    ),
    "shell odd key": (
        "name: a\n", ("dpo..beta=3",),
        "command line: 'dpo..beta=3' must look like section.key=value; the key 'dpo..beta' is none",
    ),
    "shell no yaml": (
        "name: a\n", ("dpo.beta=[1",),
        "command line: 'dpo.beta=[1': the value is not valid YAML: it ends before a bracket or a quotation mark is "
        "closed; inside the shell's quotes, put a text in quotes of its own",
    ),
    "shell through a value": (
        "name: a\n", ("name.x=3",),
        "command line: name.x cannot be set: name is 'a'",
    ),
    "shell place": (
        "name: a\n", ("seed.sources[2].path=x",),
        "command line: seed.sources[2] cannot be set: seed.sources lists 0 there; set the whole list, as in "
        "seed.sources=[...]",
    ),
    "shell several": (
        "name: a\ndpo: {bta: 1}\n", ("sft.bta=1", "num_rounds=-1",),
        "command line: num_rounds=-1 must be at least 0\ncommand line: unknown setting 'sft.bta'; known here: "
        "learning_rate, final_learning_rate, warmup_ratio, num_epochs, batch_size, micro_batch_size, max_length, "
        "weight_decay, max_grad_norm, dropout, gradient_checkpointing, bf16\nc.yaml line 2: unknown setting "
        "'dpo.bta'; did you mean 'beta'?",
    ),
    "shell unknown section": (
        "name: a\n", ("modle.path=y",), "command line: unknown setting 'modle'; did you mean 'mode'?",
    ),
    "shell line break": (
        "name: a\n", ("judge.rubric=a\nb",),
        "judge.rubric='a b': no such file; shipped: additive, concise, lab_additive, lab_self_instruct, mt_bench, "
        "multiple_choice, pairwise, safety, self_instruct",
    ),
}
"""Unknown settings, wrong values, secrets, and words of the command line."""
