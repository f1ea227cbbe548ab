"""What most notebooks and tests import, imported once: a process forked from one that has done so begins in no time.

`gc.freeze` keeps all of it out of the later garbage collections, of which each training does some."""
import gc, logging

logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)      # its complaint that `kernels` is not installed
import datasets, matplotlib.pyplot, nbdev.test, pandas, peft, scipy.stats, sklearn.linear_model, torch                                                # noqa: E401, E402, F401
import bitsandbytes, execnb.shell, torch._dynamo, torch._inductor.compile_fx, transformers.models.llama.modeling_llama, transformers.trainer, trl.trainer.sft_trainer    # noqa: E401, E402, F401

logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.NOTSET)
gc.freeze()
