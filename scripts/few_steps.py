"""Settings that cut `experiment=smollm2_gpu` down to a few steps of each phase: what bench_gpu.py
tries it with.
"""

FEW_STEPS = [
    "cognate.branch.steps=6", "cognate.generated_rows=400", "cognate.probe_items=8",
    "evomerge.search.population=4", "evomerge.search.generations=1", "evomerge.search.children=2",
    "evomerge.items=8", "evomerge.final_items=8", "evomerge.test_items=8", "quietstar.steps=3",
    "quietstar.measure.windows=4", "bitnet.train.steps=12", "bitnet.init.rows=16",
    "bitnet.measure_items=16",
    "train.steps={adapt_1:4,adapt_2:2,adapt_3:2,chaos_1:2,chaos_2:2,chaos_3:2,dream_1:2,dream_2:2,self_model:2,settle:4}",
    "train.mix_rows=400", "train.measure.text_items=8", "train.measure.task_items=4",
    "bake.traces.calculator.count=60", "bake.traces.memory.count=12", "bake.traces.code.count=6",
    "bake.traces.retrieve.count=6", "bake.traces.word_problems.count=12", "bake.training.steps=4",
    "bake.persona.prompts=8",
    "bake.persona.heldout=8", "bake.measure.items=6", "bake.measure.text_items=8",
    "adas.experts.rows=100", "adas.experts.svf_steps=2", "adas.experts.task_steps=2",
    "adas.search.iterations=1", "adas.search.candidates=2", "adas.search.race_items=[2,4]", "adas.search.race_keep=[1]",
    "adas.search.accept_items=6",
    "adas.search.pool_items=24", "adas.runtime_search.techniques=[temperature]",
    "adas.runtime_search.items=4", "adas.runtime_search.final_items=8", "adas.test_items=8",
    "compress.calibration.windows=8", "compress.budget.search_steps=2",
    "compress.measure.windows=2",
]  # fmt: skip
# Smaller batches too, because a few steps of that size would still take one hour on a processor.
SMALL = [
    "cognate.branch.rows=2", "cognate.branch.length_tokens=128", "evomerge.batch_tokens=512",
    "quietstar.batch_rows=2", "quietstar.length_tokens=128", "quietstar.positions=2",
    "quietstar.thought_length=2", "quietstar.thoughts=2", "bitnet.train.rows=2",
    "bitnet.train.length_tokens=128", "bitnet.linear.group_size=32", "train.batch_rows=2",
    "train.length_tokens=128", "bake.training.rows=2", "bake.training.length_tokens=128",
    "bake.training.neutral_rows=1", "bake.persona.reply_tokens=4", "bake.persona.rows=2",
    "bake.measure.max_new_tokens=8", "adas.experts.batch_rows=2", "adas.experts.length_tokens=128",
    "compress.calibration.length_tokens=128", "compress.measure.length_tokens=128",
    "compress.calibration.count_windows=8",
]  # fmt: skip
PHASES = ("cognate", "evomerge", "quietstar", "bitnet", "train", "bake", "adas", "compress")
# A few steps keep nothing: what a gate says of them means nothing.
UNGATED = [f"{phase}.gate.enabled=false" for phase in PHASES]
# The default run for as few steps.
NANO_SMOKE = ["cognate.trunk.steps=6", "evomerge.baseline=false", *FEW_STEPS, *SMALL, *UNGATED]
