"""Bad configs and what `selfreward check c.yaml WORDS` says of each: name -> (the file, the words, the lines after `error: `).

The files are as people write them; see test_bad_configs.
"""

from bad_files import Table

# fmt: off
SETTINGS: Table = {
    "start-is-trainable": (
        "name: a\nmodel: {path: 'endpoint:far'}\n", (),
        "c.yaml: model.path='endpoint:far': an endpoint cannot be trained; give a model folder (roles may name "
        "endpoints) (rule start-is-trainable)",
    ),
    "endpoints-exist": (
        "name: a\njudge: {model: 'endpoint:fra'}\nendpoints: {far: {base_url: 'http://h/v1', model: m}}\n", (),
        "c.yaml: judge.model='endpoint:fra' names no endpoint; did you mean endpoint:far? endpoints knows: far (rule "
        "endpoints-exist)",
    ),
    "script-is-there": (
        "name: a\nengine: {name: scripted}\n", (),
        "c.yaml: engine.name=scripted needs engine.script (rule script-is-there)",
    ),
    "script-is-read": (
        "name: a\nengine: {script: echo}\n", (),
        "c.yaml: engine.script='echo' is not read with engine.name=hf; set engine.name=scripted, or remove it (rule "
        "script-is-read)",
    ),
    "vllm-is-used": (
        "name: a\nengine: {vllm: {tensor_parallel_size: 2, eager: false}}\n", (),
        "c.yaml: engine.vllm.tensor_parallel_size=2 is not read with engine.name=hf; set engine.name=vllm, or remove it (rule "
        "vllm-is-used)",
    ),
    "sources-are-there": (
        "name: a\nseed: {sources: []}\n", (),
        "c.yaml: seed.sources must hold one source at least, such as [{format: lab}] (rule sources-are-there)",
    ),
    "sources-have-paths": (
        "name: a\nseed: {sources: [{format: alpaca}]}\n", (),
        "c.yaml: a source of format alpaca in seed.sources needs a path; set its path, or seed.path (rule "
        "sources-have-paths)",
    ),
    "path of nobody": (
        "name: a\nseed: {path: x}\n", (),
        "c.yaml: seed.path='x' belongs to no source; set seed.sources=[{format: auto}] to read it (rule sources-have-paths)",
    ),
    "lab-has-no-path": (
        "name: a\nseed: {sources: [{format: lab, path: x}]}\n", (),
        "c.yaml: seed.sources[0].path='x' is not read with format=lab (the embedded micro-world); remove one of them "
        "(rule lab-has-no-path)",
    ),
    "some-response-fits": (
        "name: a\nseed: {sources: [{path: x, min_response_words: 5, max_response_words: 4}]}\n", (),
        "c.yaml: seed.sources[0]: min_response_words=5 is above max_response_words=4: no response fits; change "
        "either (rule some-response-fits)",
    ),
    "something-to-train-on": (
        "name: a\nseed: {sources: [{path: x, split: heldout}]}\n", (),
        "c.yaml: seed.sources have split=heldout all: nothing is left to train on; give a source split=auto or train "
        "(rule something-to-train-on)",
    ),
    "sources-differ": (
        "name: a\nseed: {sources: [{path: x}, {path: x}]}\n", (),
        "c.yaml: seed.sources[1] is the same as seed.sources[0]; remove one (rule sources-differ)",
    ),
    "eft-has-data": (
        "name: a\nmode: no-eft\nreplay: {num_items: 3}\n", (),
        "c.yaml: replay.num_items needs EFT data, but mode=no-eft has none; set replay.num_items=0 (rule eft-has-data)",
    ),
    "enough-targets": (
        "name: a\nseed: {num_eft: 10}\neft: {min_targets: 11}\n", (),
        "c.yaml: eft.min_targets=11 is above seed.num_eft=10, the most there can be; change either (rule enough-targets)",
    ),
    "batches-divide": (
        "name: a\nsft: {batch_size: 10, micro_batch_size: 4}\n", (),
        "c.yaml: sft.batch_size=10 is not a multiple of sft.micro_batch_size=4; change either (rule batches-divide)",
    ),
    "rates-fall": (
        "name: a\ndpo: {learning_rate: 1e-7, final_learning_rate: 1e-6}\n", (),
        "c.yaml: dpo.final_learning_rate=1e-06 is above dpo.learning_rate=1e-07; lower it (rule rates-fall)",
    ),
    "some-proposal-fits": (
        "name: a\npropose: {min_words: 9, max_words: 8}\n", (),
        "c.yaml: propose.min_words=9 is above propose.max_words=8: no proposal fits; change either (rule "
        "some-proposal-fits)",
    ),
    "banned": (
        "name: a\npropose: {banned_words: [a, ' ']}\n", (),
        "c.yaml: propose.banned_words holds an empty text; remove it (rule banned-words-are-words)",
    ),
    "file without path": (
        "name: a\npropose: {source: file}\n", (),
        "c.yaml: propose.source=file needs propose.path (rule prompt-file-is-named)",
    ),
    "path without file": (
        "name: a\npropose: {path: x}\n", (),
        "c.yaml: propose.path='x' is not read with propose.source=self-instruct; set propose.source=file (rule "
        "prompt-file-is-named)",
    ),
    "file-asks-nobody": (
        "name: a\npropose: {source: file, path: x, model: 'scripted:echo'}\n", (),
        "c.yaml: propose.model='scripted:echo' is not asked with propose.source=file; remove one of them (rule "
        "file-asks-nobody)",
    ),
    "enough-attempts": (
        "name: a\npropose: {max_attempts: 10, num_prompts: 20}\n", (),
        "c.yaml: propose.max_attempts=10 is below propose.num_prompts=20: there cannot be that many; change either "
        "(rule enough-attempts)",
    ),
    "enough-prompts": (
        "name: a\npropose: {num_prompts: 10}\npair: {min_pairs: 11}\n", (),
        "c.yaml: pair.min_pairs=11 is above propose.num_prompts=10: a prompt gives one pair at most; change either "
        "(rule enough-prompts)",
    ),
    "votes-suffice": (
        "name: a\njudge: {num_votes: 2, min_votes: 3}\n", (),
        "c.yaml: judge.min_votes=3 is above judge.num_votes=2; lower it or ask for more votes (rule votes-suffice)",
    ),
    "heldout-votes-suffice": (
        "name: a\njudge: {min_votes: 3}\neval: {num_votes: 2}\n", (),
        "c.yaml: eval.num_votes=2 is below judge.min_votes=3: no held-out response could get a score; raise "
        "eval.num_votes or lower judge.min_votes (rule heldout-votes-suffice)",
    ),
    "retries-differ": (
        "name: a\njudge: {max_retries: 1, temperature: 0}\n", (),
        "c.yaml: judge.max_retries=1 asks again, but with judge.temperature=0 the reply is always the same; change "
        "either (rule retries-differ)",
    ),
    "seats-differ": (
        "name: a\njudge: {panel: [{}, {}]}\n", (),
        "c.yaml: judge.panel: model 'policy' with rubric 'additive' sits there twice; raise its num_votes (rule "
        "seats-differ)",
    ),
    "judgements-justify": (
        "name: a\njudge: {justify: false}\n", (),
        "c.yaml: judge.justify=false needs judge.mode=expected: sampled judgements justify their scores (rule "
        "judgements-justify)",
    ),
    "at-once": (
        "name: a\njudge: {mode: expected, justify: false, num_votes: 1, max_retries: 2}\n", (),
        "c.yaml: eval.num_votes=3, but judge.justify=false samples nothing, so votes are equal; set eval.num_votes=1 "
        "(rule at-once-is-once)\nc.yaml: judge.max_retries=2, but judge.justify=false samples nothing to try again; "
        "set it to 0 (rule at-once-is-once)",
    ),
    "oracle-has-its-world": (
        "name: a\nseed: {sources: [{path: x}]}\neval: {oracle: true}\n", (),
        "c.yaml: eval.oracle needs a seed source of format lab, got auto; set eval.oracle=false (rule oracle-has-its-world)",
    ),
    "oracle-is-on": (
        "name: a\neval: {head_to_head: oracle}\n", (),
        "c.yaml: eval.head_to_head=oracle compares oracle scores; set eval.oracle=true, or another head_to_head "
        "(rule oracle-is-on)",
    ),
    "rule by shell": (
        "name: a\njudge: {num_votes: 2}\n", ("judge.min_votes=3",),
        "command line: judge.min_votes=3 is above judge.num_votes=2; lower it or ask for more votes (rule votes-suffice)",
    ),
    "rule and type": (
        "name: a\njudge: {num_votes: 2, min_votes: 3}\ndpo: {beta: -1}\n", (),
        "c.yaml line 3: dpo.beta=-1 must be above 0\nc.yaml: judge.min_votes=3 is above judge.num_votes=2; lower it "
        "or ask for more votes (rule votes-suffice)",
    ),
    "model missing": (
        "name: a\nmodel: {path: nowhere}\n", (),
        "model.path='nowhere' is no folder here; give a local model folder, or set model.allow_download=true for a hub id",
    ),
    "rubric missing": (
        "name: a\njudge: {rubric: nowhere}\n", (),
        "judge.rubric='nowhere': no such file; shipped: additive, concise, lab_additive, lab_self_instruct, mt_bench, "
        "multiple_choice, pairwise, safety, self_instruct",
    ),
    "rubric kind": (
        "name: a\njudge: {rubric: pairwise}\n", (),
        "judge.rubric='pairwise' is of kind pairwise, but pointwise is needed",
    ),
    "template is folder": (
        "name: a\nmodel: {chat_template: .}\n", (),
        "model.chat_template='.' is not a file, nor 'own'",
    ),
    "script unknown": (
        "name: a\njudge: {model: 'scripted:nobody'}\n", (),
        "judge.model: there is no script 'nobody'; known are random, echo and JSON files: set engine.script or the "
        "scripted:NAME of a role",
    ),
    "prompts missing": (
        "name: a\npropose: {source: file, path: nowhere.txt}\n", (),
        "propose.path='nowhere.txt' is no file; propose.source=file needs one",
    ),
    "words missing": (
        "name: a\npropose: {unsafe_words_file: nowhere.txt}\n", (),
        "propose.unsafe_words_file='nowhere.txt' cannot be read: [Errno 2] No such file or directory: 'nowhere.txt'; "
        "give a UTF-8 text file with one word or phrase a line",
    ),
    "seed missing": (
        "name: a\nseed: {sources: [{path: nowhere}]}\n", (),
        "seed.sources[0]: 'nowhere' is no file or folder here; set its path (or seed.path), or "
        "seed.sources[0].allow_download=true for a data set of the hub",
    ),
}
"""Settings that contradict each other, a rule each, and files that are not there."""
