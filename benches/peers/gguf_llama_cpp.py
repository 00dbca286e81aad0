"""llama.cpp as a peer on the processor: reads prompts and writes tokens with a GGUF file.

Started by `danaus bench generate --model FILE.gguf --peers` with the number of threads as argument.
Needs llama-cpp-python, built for this machine. Requests, one a line:

    prefill TOKENS FILE              seconds to read a prompt of so many tokens
    decode BATCH PROMPT STEPS FILE   median seconds of a step of BATCH sequences after a prompt

Choosing the next token is left out (a fixed one is fed); attention and the f16 cache are the defaults.
"""

import ctypes
import statistics
import sys
import time

import llama_cpp as lib

CONTEXT = 16384
MAX_BATCH = 16


class Model:
    def __init__(self, path, threads):
        options = lib.llama_model_default_params()
        options.n_gpu_layers = 0
        self.model = lib.llama_model_load_from_file(path.encode(), options)
        if not self.model:
            raise RuntimeError(f"cannot load {path}")
        options = lib.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = CONTEXT, 2048, 512
        options.n_seq_max = MAX_BATCH
        options.n_threads = options.n_threads_batch = threads
        self.context = lib.llama_init_from_model(self.model, options)
        self.vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))
        self.batch = lib.llama_batch_init(2048, 0, 1)

    def clear(self):
        lib.llama_memory_clear(lib.llama_get_memory(self.context), True)

    def decode(self, entries):
        """entries: (token, position, sequence, wants logits)."""
        self.batch.n_tokens = len(entries)
        for i, (token, position, sequence, logits) in enumerate(entries):
            self.batch.token[i], self.batch.pos[i] = token, position
            self.batch.n_seq_id[i], self.batch.seq_id[i][0] = 1, sequence
            self.batch.logits[i] = logits
        if lib.llama_decode(self.context, self.batch) != 0:
            raise RuntimeError("llama_decode failed")

    def prompt(self, length, sequence=0):
        tokens = [(i * 7919 + 13) % self.vocab for i in range(length)]
        last = length - 1
        return [(token, i, sequence, i == last) for i, token in enumerate(tokens)]

    def prefill(self, length):
        self.clear()
        start = time.perf_counter()
        self.decode(self.prompt(length))
        lib.llama_get_logits_ith(self.context, length - 1)
        return time.perf_counter() - start

    def steps(self, count, length, steps):
        self.clear()
        for sequence in range(count):
            self.decode(self.prompt(length, sequence))
        times = []
        for step in range(steps + 1):
            start = time.perf_counter()
            self.decode([(1 + sequence, length + step, sequence, True) for sequence in range(count)])
            for index in range(count):
                lib.llama_get_logits_ith(self.context, index)
            times.append(time.perf_counter() - start)
        return statistics.median(times[1:])


def answer(line, models, threads):
    kind, rest = line.split(" ", 1)
    if kind == "prefill":
        length, path = rest.split(" ", 1)
    else:
        count, length, steps, path = rest.split(" ", 3)
    if path not in models:
        models[path] = Model(path, threads)
    if kind == "prefill":
        return models[path].prefill(int(length))
    return models[path].steps(int(count), int(length), int(steps))


def main():
    threads = int(sys.argv[1])
    silent = lib.llama_log_callback(lambda level, text, data: None)
    lib.llama_log_set(silent, ctypes.c_void_p(0))
    lib.llama_backend_init()
    models = {}
    print("ready", flush=True)
    for line in sys.stdin:
        try:
            print(answer(line.strip(), models, threads), flush=True)
        except Exception as error:
            print(f"error: {error}", flush=True)


if __name__ == "__main__":
    main()
