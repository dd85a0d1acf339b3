"""Report what sampled molecules are worth, by the measures of MOSES (Polykovskiy et al., 2020, arXiv:1811.12823).

    python examples/molecule_report.py molecules.smi --training moses
    python examples/molecule_report.py texts.jsonl --training mine.smi --json report.json

Needs the extra `molecules` (RDKit). The molecules are SMILES, one a line, or
the JSON lines of `rill batch` ("text"); the training set is SMILES, one a line,
or `moses`. Figures:

valid                fraction of the molecules that RDKit can read
unique@K             distinct ones among the first K valid, in canonical form
novel                distinct valid ones that the training set lacks
internal diversity   1 - mean Tanimoto similarity of all pairs, by Morgan
                     fingerprints (radius 2, 1,024 bits), of the first 10,000
                     valid
"""

import argparse
import gzip
import json
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from rdkit import Chem, DataStructs, RDLogger
from rdkit.Chem import rdFingerprintGenerator

# The published CharRNN: mean of three runs, from the README of molecularsets/moses (0.9748 ± 0.0264 valid, 0.8419 ±
# 0.0509 novel; three layers of 768, 80 epochs on a GPU).
CHAR_RNN = {"valid": 0.975, "unique@1000": 1.0, "unique@10000": 0.999, "novel": 0.842, "internal diversity": 0.856}
MOST = 10_000  # molecules whose pairs are compared
LONGEST = 1_000  # characters of a molecule: others are not valid


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit status: 0 done, 2 an error the user can fix."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        epilog=(__doc__ or "").partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("molecules", type=Path, help="SMILES, one a line, or JSON lines of rill batch")
    parser.add_argument("--training", help="the training set: SMILES, one a line, or moses")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(arguments)
    try:
        figures = report(read(options.molecules), options.training)
        if options.json:
            options.json.write_text(json.dumps(figures, indent=1) + "\n")
    except (OSError, ValueError, KeyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{'':20} {'sampled':>9} {'CharRNN, published':>20}")
    for name, value in figures.items():
        published = format(CHAR_RNN[name], ".3f") if name in CHAR_RNN else ""
        print(f"{name:20} {value if isinstance(value, int) else format(value, '.4f'):>9} {published:>20}")
    return 0


def report(molecules: Iterator[str], training: str | None) -> dict[str, float]:
    """The figures of `molecules`, in one pass. Raises ValueError if there are none, OSError for the training set."""
    RDLogger.DisableLog("rdApp.*")
    fingerprint = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=1024).GetFingerprint
    count, valid, distinct, unique = 0, 0, set[str](), {}
    bits = []
    for smiles in molecules:
        count += 1
        molecule = Chem.MolFromSmiles(smiles) if 0 < len(smiles) <= LONGEST else None
        if molecule is None:
            continue
        valid += 1
        distinct.add(Chem.MolToSmiles(molecule))
        if valid in (1_000, 10_000):
            unique[f"unique@{valid}"] = len(distinct) / valid
        if len(bits) < MOST:
            bits.append(fingerprint(molecule))
    if not count:
        raise ValueError("there are no molecules")
    figures: dict[str, float] = {"molecules": count, "valid": valid / count, **unique}
    if training is not None and valid:
        seen = len({smiles for smiles in training_set(training) if smiles in distinct})
        figures["novel"] = 1 - seen / len(distinct)
    if bits:
        total = sum(sum(DataStructs.BulkTanimotoSimilarity(each, bits)) for each in bits)
        figures["internal diversity"] = 1 - total / len(bits) ** 2
    return figures


def read(path: Path) -> Iterator[str]:
    """The SMILES in a file: the first word of a line, or `text` of a JSON line. Raises ValueError with the line."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if path.suffix != ".jsonl":
                yield (line.split() or [""])[0]
                continue
            try:
                document = json.loads(line)
                yield document.get("text", "")
            except (ValueError, AttributeError):
                raise ValueError(f"{path}, line {number}: not a JSON object") from None


def training_set(name: str) -> Iterator[str]:
    """Canonical SMILES of the training set; those of MOSES are canonical already."""
    if name != "moses":
        for smiles in read(Path(name)):
            molecule = Chem.MolFromSmiles(smiles)
            if molecule is not None:
                yield Chem.MolToSmiles(molecule)
        return
    try:
        (path,) = (file for file in files("molsets") or [] if file.match("moses/dataset/data/train.csv.gz"))
    except (PackageNotFoundError, ValueError):
        raise ValueError("moses is in the package molsets; pip install --no-deps molsets") from None
    with gzip.open(str(path.locate()), "rt", encoding="utf-8") as lines:
        next(lines)
        yield from map(str.strip, lines)


if __name__ == "__main__":
    sys.exit(main())
