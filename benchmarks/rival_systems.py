"""The rivals' side of ``rivals.py``: runs under the python of their own environment and does not import this project.

Reads JSON lines on stdin and answers each on stdout: ``{"load": name}`` loads or trains a system, ``{"run": name}`` rates all
texts once.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

Rates = Callable[[list[str]], object]


def with_head(model: object) -> Rates:
    """Encoding by a SentenceTransformer as it is, and a linear head of two outputs; the weights do not matter to speed."""
    head = np.random.default_rng(0).standard_normal((model.get_embedding_dimension(), 2)).astype(np.float32)
    return lambda texts: model.encode(texts, show_progress_bar=False) @ head


def torch_encoder(backbone: Path, texts: list[str], labels: list[str]) -> Rates:
    from sentence_transformers import SentenceTransformer

    return with_head(SentenceTransformer(str(backbone), device="cpu"))


def onnx_int8_encoder(backbone: Path, texts: list[str], labels: list[str]) -> Rates:
    """Exported and quantised by sentence-transformers' own functions, as its documentation says, for this processor."""
    from sentence_transformers import SentenceTransformer, export_dynamic_quantized_onnx_model

    kind = next(
        (kind for kind in ("avx512_vnni", "avx512f", "avx2") if kind in Path("/proc/cpuinfo").read_text()), "arm64"
    )
    kind = {"avx512f": "avx512"}.get(kind, kind)
    folder = Path(tempfile.mkdtemp(prefix="rival-onnx-"))
    plain = SentenceTransformer(str(backbone), backend="onnx", device="cpu", model_kwargs={"export": True})
    plain.save_pretrained(str(folder))
    export_dynamic_quantized_onnx_model(plain, kind, str(folder))
    (name,) = (path.name for path in folder.rglob(f"*qint8_{kind}.onnx"))
    return with_head(
        SentenceTransformer(str(folder), backend="onnx", device="cpu", model_kwargs={"file_name": f"onnx/{name}"})
    )


def model2vec(backbone: Path, texts: list[str], labels: list[str]) -> Rates:
    """Its classifier on static vectors that it has itself distilled from the same backbone."""
    from model2vec.distill import distill
    from model2vec.train import StaticModelForClassification

    classifier = StaticModelForClassification.from_static_model(model=distill(str(backbone)))
    classifier.fit(texts, labels, max_epochs=3)
    # The form that its documentation deploys: without torch.
    pipeline = classifier.to_pipeline()
    return lambda texts: pipeline.predict_proba(texts)


def fasttext(backbone: Path, texts: list[str], labels: list[str]) -> Rates:
    import fasttext

    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
        for text, label in zip(texts, labels, strict=True):
            file.write(f"__label__{label} {' '.join(text.split())}\n")
        file.flush()
        model = fasttext.train_supervised(file.name, wordNgrams=2, epoch=10, thread=1, verbose=0)
    # Line ends are an error to predict. The call under model.predict, which fails under NumPy 2 in the older wheels.
    return lambda texts: model.f.multilinePredict([" ".join(text.split()) + "\n" for text in texts], 3, 0.0, "strict")


SYSTEMS = {"st-torch": torch_encoder, "st-onnx-int8": onnx_int8_encoder, "model2vec": model2vec, "fasttext": fasttext}


def main() -> None:
    rows = [json.loads(line) for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()]
    texts, labels = [row["text"] for row in rows], [row["label"] for row in rows]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not be taken for an answer
    loaded: dict[str, Rates] = {}
    for line in sys.stdin:
        command = json.loads(line)
        if "load" in command:
            loaded[command["load"]] = SYSTEMS[command["load"]](Path(sys.argv[2]), texts, labels)
            answer = {}
        else:
            start, cpu = time.perf_counter(), time.process_time()
            loaded[command["run"]](texts)
            answer = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
