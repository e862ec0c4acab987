"""A real llama.cpp server with a model of half a megabyte that is made on the spot.

The model has no layers that do anything: each token's embedding points at one follower. So its replies are known:
`REPLY` to every prompt, ` round0 round1 …` until the context is full to a prompt that ends with `ENDLESS`, and to one
that ends with `THINKING` first `THOUGHT` between the tags of reasoning, and then `SO`.

    python tests/peers/llama_cpp.py PORT        serves it from the current folder
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

MODEL = "tiny"
WORDS = [f" word{n}" for n in range(24)]
REPLY = "".join(WORDS)
ENDLESS = "~"
ROUND = [f" round{n}" for n in range(16)]
THINKING = "^"
THOUGHT, SO = "".join(f" hm{n}" for n in range(9)), "".join(f" so{n}" for n in range(5))
REASONED = ["<think>", *(f" hm{n}" for n in range(9)), "</think>", *(f" so{n}" for n in range(5))]
CONTEXT_TOKENS = 65_536
SLOTS = 2


@pytest.fixture(scope="session")
def llama_cpp_url() -> Iterator[str]:
    """The address of a running llama.cpp, as in `base_url`: `http://127.0.0.1:PORT/v1`."""
    from tests.servers import free_port, leashed

    port = free_port()

    def ready() -> bool:
        try:
            with urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as answer:
                return answer.status == 200
        except OSError:  # nobody there yet, or 503 while the model is loaded
            return False

    folder = Path(tempfile.mkdtemp(prefix="turnkeeper-llama-"))
    with leashed([sys.executable, Path(__file__).resolve(), str(port)], folder, ready):
        yield f"http://127.0.0.1:{port}/v1"


def write_model(path: Path) -> None:
    """A llama of one block whose attention and feed-forward add nothing."""
    import gguf
    import numpy as np

    bos, eos, bytes_at = 1, 2, 3
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words_at, round_at = len(tokens), len(tokens) + len(WORDS)
    reasoned_at = round_at + len(ROUND)
    tokens += [word.replace(" ", "\u2581") for word in WORDS + ROUND + REASONED]
    kinds = [gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * 2, *[gguf.TokenType.BYTE] * 256]
    kinds += [gguf.TokenType.NORMAL] * (len(tokens) - len(kinds))

    width, random = 128, np.random.default_rng(7)
    embedding = np.zeros((len(tokens), width), np.float32)
    output = np.zeros_like(embedding)

    def direction() -> np.ndarray:
        drawn = random.standard_normal(width).astype(np.float32)
        return drawn / np.linalg.norm(drawn)

    def chain(start: np.ndarray, first: int, count: int, last: int) -> None:
        """From `start`, the tokens from `first` on follow each other; then comes `last`."""
        for token in range(first, first + count):
            output[token] += start
            embedding[token] = start = direction()
        output[last] += start

    embedding[:] = plain = direction()
    embedding[bytes_at + ord(ENDLESS)] = endless = direction()
    embedding[bytes_at + ord(THINKING)] = thinking = direction()
    chain(plain, words_at, len(WORDS), eos)
    chain(endless, round_at, len(ROUND), round_at)
    chain(thinking, reasoned_at, len(REASONED), eos)

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT_TOKENS)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(width // 2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(kinds)
    writer.add_bos_token_id(bos)
    writer.add_eos_token_id(eos)
    writer.add_unk_token_id(0)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(
        "{% for m in messages %}{{ m['content'] }}{% if not loop.last %}{{ '\\n' }}{% endif %}{% endfor %}"
    )
    shapes = {"attn_q": (128, 128), "attn_k": (64, 128), "attn_v": (64, 128), "attn_output": (128, 128)}
    shapes |= {"ffn_gate": (32, 128), "ffn_up": (32, 128), "ffn_down": (128, 32)}
    tensors = {f"blk.0.{name}": np.zeros(shape, np.float32) for name, shape in shapes.items()}
    tensors |= {name: np.ones(width, np.float32) for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm")}
    tensors |= {"token_embd": embedding, "output": output * 5}  # so far apart that sampling has no choice
    for name, tensor in tensors.items():
        writer.add_tensor(f"{name}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def serve(port: int) -> None:
    """Serve until ended by a signal."""
    import signal

    import xllamacpp

    write_model(Path("tiny.gguf"))
    params = xllamacpp.CommonParams()
    params.model.path = "tiny.gguf"
    params.model_alias = {MODEL}
    params.n_ctx = CONTEXT_TOKENS * SLOTS
    params.n_parallel = SLOTS
    params.cpuparams.n_threads = 1
    params.warmup = False
    params.hostnames = ["127.0.0.1"]
    params.port = port
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    serve(int(sys.argv[1]))
