"""The CUDA kernels' machine code, as it is in the built module. No GPU is needed, only cuobjdump and nvdisasm."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import fusedloss
from fusedloss import _C

ROOT = Path(__file__).resolve().parents[1]
TOOLS = Path(sysconfig.get_path("purelib")) / "nvidia/cu13/bin"
NAMES = fusedloss.build_info()["cuda_architectures"]
ARCHITECTURES = [name for name in NAMES if name.startswith("sm_")]
THREADS = 256
# Formulas that say that they are heavy: in float64 they need more registers than the others.
HEAVY = ("SoftmaxFocalLoss", "KlDivergenceWithLogits", "JsDivergenceWithLogits")
# Shared memory of a block: for its sum, with what the system keeps of it; and in float64, for registers without room.
MOST_SHARED = {"f": 64 + 1024, "d": 20 * 1024}
SHARED_KIB = {"sm_80": 164, "sm_90": 228, "sm_100": 228}
# Instructions an element, at most, of the kernels that train (value and gradient, dense) where elements are float32, by
# formula and operands; two-byte elements may take a third more and 6 for taking them apart, float64 13/4 as many.
MOST_INSTRUCTIONS = {
    ("BinaryCrossEntropy", 2): 115,
    ("BinaryCrossEntropyWithLogits", 2): 70,
    ("BinaryCrossEntropyWithLogits", 3): 80,
    ("GaussianKl", 2): 56,
    ("GaussianNllLoss", 3): 88,
    ("HingeEmbeddingLoss", 2): 38,
    ("HingeLoss", 2): 46,
    ("HuberLoss", 2): 32,
    ("KlDiv", 2): 94,
    ("L1Loss", 2): 34,
    ("LogCoshLoss", 2): 104,
    ("MarginRankingLoss", 3): 38,
    ("MeanAbsolutePercentageError", 2): 62,
    ("MeanSquaredLogError", 2): 100,
    ("MseLoss", 2): 26,
    ("PoissonNllLoss", 2): 130,
    ("QuantileLoss", 2): 38,
    ("QuantileLoss", 3): 55,
    ("SigmoidFocalFormula<0>", 2): 140,
    ("SigmoidFocalFormula<1>", 2): 92,
    ("SmoothL1Loss", 2): 44,
    ("SoftMarginLoss", 2): 66,
    ("SquaredHingeLoss", 2): 46,
}
TYPES = {"float": "f", "double": "d", "Float16": "f", "BFloat16": "f"}

pytestmark = [
    pytest.mark.skipif(not ARCHITECTURES, reason="the build has no CUDA kernels"),
    pytest.mark.skipif(
        not all((TOOLS / tool).exists() for tool in ("cuobjdump", "nvdisasm")),
        reason="cuobjdump or nvdisasm is missing: install nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm",
    ),
]

RESOURCES = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);")
# A kernel's name: the way through memory, operands, mode, restricted operand, types of elements and numbers, formula.
NAME = re.compile(
    r"(?P<way>dense|strided)ILi(?P<operands>\d)ELNS0_4ModeE(?P<mode>\d)ELin?\d+E"
    r"(?P<element>NS_4CUDA\d+\w*?Float16E|[fd])?(?P<number>[fd])NS(?:_4CUDA|\d+_)\d+(?P<formula>[A-Z]\w*?)(?:ILb(?P<variant>\d)EE)?EE"
)

# The same of kernels over rows: types of elements and numbers, whether along a direction, formula and its variant.
ROW_NAME = re.compile(
    r"over_rowsI(?P<element>NS\d?_(?:3Any|4CUDA\d+B?Float16)E|[fd])(?P<number>[fd])Lb(?P<moving>\d)ENS1_\d+"
    r"(?P<formula>[A-Z]\w*?)(?:I(?P<variant>(?:Lb\dE)+)E)?EEEv"
)
ROW_FORMULAS = {
    "CategoricalCrossEntropyFormula": ("00", "01", "11"),
    "CategoricalHingeFormula": ("0", "1"),
    "CrossEntropyFormula": ("001", "010", "100", "101"),
    "JsDivergence": ("",),
    "JsDivergenceWithLogits": ("",),
    "KlDivergence": ("",),
    "KlDivergenceWithLogits": ("",),
    "MultiMarginFormula": ("0", "1"),
    "MultilabelMargin": ("",),
    "MultilabelSoftMargin": ("",),
    "NllLoss": ("",),
    "SoftmaxFocalLoss": ("",),
}
# Types of elements and numbers, and whether along a direction.
ROW_KERNELS = (
    *(("Any", number, moving) for number in "fd" for moving in (False, True)),
    *((element, "f", False) for element in ("f", "Float16", "BFloat16")),
)

# Kernels over a lattice: the step of a pass, type of numbers, whether along a direction.
LATTICE_NAME = re.compile(r"lattice4CUDA\d+(?P<step>[a-z_]+)I(?P<number>[fd])Lb(?P<moving>\d)EEEv")
LATTICE_STEPS = ("emit", "sweep", "join", "write_gradients")
LATTICE_PLACES = 256  # whose rows are in shared memory

# Kernels over pairs, likewise.
PAIR_NAME = re.compile(r"pairs4CUDA\d+(?P<step>[a-z_]+)I(?P<number>[fd])Lb(?P<moving>\d)EEEv")
PAIR_STEPS = ("softmax_rows", "sigmoid_rows", "add_to_columns")

# Kernels of mined triplets: the step of a pass, type of numbers, and whether for all triplets.
TRIPLET_NAME = re.compile(r"triplets4CUDA\d+(?P<step>[a-z_]+)I(?P<number>[fd])(?:Lb(?P<all>\d)E)?EEv")
TRIPLET_STEPS = (
    *("read_vectors", "measure", "mine_hardest", "sort_row", "mine_sorted", "move", "pull", "write_gradient"),
    "mine_sorted, all",
)

# Kernels of losses of vectors: the way through memory, the loss and whether it swaps, what distances are made of; types
# of numbers and of elements, or whether along a direction.
VECTOR_NAME = re.compile(
    r"vectors4CUDA\d+(?P<way>strided|packed)INS\d?_\d+(?P<loss>[A-Z]\w*?)(?:ILb(?P<swap>\d)EE)?ENS\d?_\d+"
    r"(?P<measure>[A-Z]\w*?)(?:ILb\dEE)?E(?P<number>[fd])(?P<rest>Lb\d|[fd]|NS\d?_4CUDA\d+B?Float16)E*v"
)
VECTOR_NORMS = ("Squares", "Magnitudes", "Largest", "Powers")
VECTOR_FORMULAS = {
    ("ContrastiveLoss", ""): VECTOR_NORMS,
    ("CosineEmbeddingLoss", ""): ("Cosine",),
    ("TripletLoss", "0"): (*VECTOR_NORMS, "Cosine"),
    ("TripletLoss", "1"): (*VECTOR_NORMS, "Cosine"),
}


@dataclass
class Kernel:
    registers: int = 0
    stack: int = 0
    shared: int = 0
    local: int = 0
    code: list[tuple[int, str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Title:
    """What a kernel is for; `element` is empty where it reads any type."""

    formula: str
    way: str
    operands: int
    mode: int
    element: str
    number: str


def disassembled(*arguments: str | Path) -> Iterator[str]:
    with subprocess.Popen([TOOLS / "cuobjdump", *arguments], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield from process.stdout
    assert process.returncode == 0


def kernels_in(file: str | Path, *choice: str) -> dict[str, Kernel]:
    found = {
        name: Kernel(*map(int, numbers))
        for name, *numbers in RESOURCES.findall("".join(disassembled(*choice, "-res-usage", file)))
    }
    for line in disassembled(*choice, "-sass", file):
        if "Function :" in line:
            kernel = found[line.split()[-1]]
        elif match := INSTRUCTION.search(line):
            kernel.code.append((int(match[1], 16), match[2], match[3]))
    return found


@functools.cache
def kernels(architecture: str) -> dict[str, Kernel]:
    return kernels_in(_C.__file__, "-arch", architecture)


def title_of(name: str) -> Title | None:
    """None for the kernels that all losses share."""
    if not (match := NAME.search(name)):
        return None
    half = re.search(r"B?Float16", match["element"] or "")
    element = half[0] if half else {"f": "float", "d": "double", None: ""}[match["element"]]
    formula = match["formula"] + (f"<{match['variant']}>" if match["variant"] else "")
    return Title(formula, match["way"], int(match["operands"]), int(match["mode"]), element, match["number"])


@dataclass(frozen=True)
class RowTitle:
    formula: str
    variant: str
    element: str
    number: str
    moving: bool


def row_title_of(name: str) -> RowTitle | None:
    if not (match := ROW_NAME.search(name)):
        return None
    element = re.search(r"Any|B?Float16", match["element"])
    variant = "".join(re.findall(r"Lb(\d)E", match["variant"] or ""))
    found = element[0] if element else match["element"]
    return RowTitle(match["formula"], variant, found, match["number"], match["moving"] == "1")


@dataclass(frozen=True)
class StepTitle:
    step: str
    number: str
    moving: bool


def step_title_of(name: str, pattern: re.Pattern[str]) -> StepTitle | None:
    match = pattern.search(name)
    return StepTitle(match["step"], match["number"], match["moving"] == "1") if match else None


def lattice_title_of(name: str) -> StepTitle | None:
    return step_title_of(name, LATTICE_NAME)


def pair_title_of(name: str) -> StepTitle | None:
    return step_title_of(name, PAIR_NAME)


def over_rows(architecture: str) -> dict[str, Kernel]:
    return {name: kernel for name, kernel in kernels(architecture).items() if "fusedloss4rows" in name}


def over_lattices(architecture: str) -> dict[str, Kernel]:
    return {name: kernel for name, kernel in kernels(architecture).items() if "fusedloss7lattice" in name}


def over_pairs(architecture: str) -> dict[str, Kernel]:
    return {name: kernel for name, kernel in kernels(architecture).items() if "fusedloss5pairs" in name}


def of_triplets(architecture: str) -> dict[str, Kernel]:
    return {name: kernel for name, kernel in kernels(architecture).items() if "fusedloss8triplets" in name}


def triplet_title_of(name: str) -> tuple[str, str] | None:
    """The step and the type of numbers."""
    match = TRIPLET_NAME.search(name)
    return (match["step"] + (", all" if match["all"] == "1" else ""), match["number"]) if match else None


@dataclass(frozen=True)
class VectorTitle:
    way: str
    loss: str
    swap: str
    measure: str
    number: str
    rest: str  # the type of elements, or whether along a direction


def vector_title_of(name: str) -> VectorTitle | None:
    if not (match := VECTOR_NAME.search(name)):
        return None
    half = re.search(r"B?Float16", match["rest"])
    rest = half[0] if half else match["rest"]
    return VectorTitle(match["way"], match["loss"], match["swap"] or "", match["measure"], match["number"], rest)


def of_vectors(architecture: str) -> dict[str, Kernel]:
    return {name: kernel for name, kernel in kernels(architecture).items() if "fusedloss7vectors" in name}


def elementwise(architecture: str) -> dict[str, Kernel]:
    families = (over_rows, over_lattices, over_pairs, of_triplets, of_vectors)
    others = {name for family in families for name in family(architecture)}
    return {name: kernel for name, kernel in kernels(architecture).items() if name not in others}


def expected_titles() -> set[Title]:
    formulas = dict(re.findall(r"POINTWISE_LOSS\((\w+), (\w+)\)", (ROOT / "csrc/pointwise/losses.def").read_text()))
    variants = {"SigmoidFocalLoss": ["SigmoidFocalFormula<0>", "SigmoidFocalFormula<1>"]}
    titles = set()
    for loss in _C.losses():
        required, optional = len(loss["operands"]), len(loss["optional_operands"])
        for operands in range(required, required + optional + 1):
            for formula in variants.get(formulas[loss["name"]], [formulas[loss["name"]]]):
                titles |= {Title(formula, "strided", operands, mode, "", n) for mode in range(5) for n in "fd"}
                titles |= {Title(formula, "dense", operands, mode, e, n) for mode in range(3) for e, n in TYPES.items()}
    return titles


def is_wide(ops: list[str], kind: str) -> bool:
    return any(op.startswith(f"{kind}.E") and ".128" in op for op in ops)


def spills(kernel: Kernel) -> bool:
    return kernel.stack > 0 or kernel.local > 0 or any(op.startswith(("LDL", "STL")) for _, op, _ in kernel.code)


def has_float_atomic(kernel: Kernel) -> bool:
    atomics = (op for _, op, _ in kernel.code if op.startswith(("RED.", "ATOM")))
    return any(re.search(r"\.(F16|F32|F64|BF16|F)", op) for op in atomics)


def occupancy(kernel: Kernel, architecture: str) -> float:
    registers_of_warp = -(-kernel.registers * 32 // 256) * 256
    by_registers = 65536 // registers_of_warp * 32 // THREADS
    by_shared = SHARED_KIB[architecture] * 1024 // max(kernel.shared + 1024, 1)
    return min(by_registers, by_shared, 2048 // THREADS) * THREADS / 2048


def instructions_an_element(kernel: Kernel, element: str) -> float:
    """Of the loop over packs, and of the one over parts of a pack in it, which runs as often as there are parts."""
    spans = []
    for address, op, target in kernel.code:
        if op.startswith("BRA") and (match := re.search(r"0x([0-9a-f]+)", target)) and int(match[1], 16) < address:
            spans.append([op for place, op, _ in kernel.code if int(match[1], 16) <= place <= address])
    outer = max((span for span in spans if is_wide(span, "LDG")), key=len)
    elements, parts = {"float": (4, 1), "double": (2, 2)}.get(element, (8, 4))
    inner = [len(span) for span in spans if not is_wide(span, "LDG")]
    assert bool(inner) == (parts > 1)
    return (len(outer) + (parts - 1) * max(inner, default=0)) / elements


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_all_kernels_are_present(architecture: str) -> None:
    titles = [title_of(name) for name in elementwise(architecture)]
    assert {title for title in titles if title} == expected_titles()
    assert len(titles) == len(expected_titles()) + 3  # finish, and rescale of two types


def test_all_kernels_over_rows_are_present(architecture: str) -> None:
    titles = [row_title_of(name) for name in over_rows(architecture)]
    expected = {
        RowTitle(formula, variant, *kernel)
        for formula, variants in ROW_FORMULAS.items()
        for variant in variants
        for kernel in ROW_KERNELS
    }
    assert {title for title in titles if title} == expected
    assert len(titles) == len(expected) + 1  # the one that counts rows


def test_registers_and_occupancy_over_rows(architecture: str) -> None:
    """Duals of doubles have four registers each; of heavy formulas doubles are too many already."""
    for name, kernel in over_rows(architecture).items():
        title = row_title_of(name)
        doublings = title.moving + (title.formula in HEAVY) if title and title.number == "d" else 0
        assert 0 < kernel.registers <= (40, 64, 128)[doublings], name
        assert occupancy(kernel, architecture) >= (0.75, 0.5, 0.25)[doublings], name


def test_packs_over_rows_are_loaded_and_stored_by_one_instruction(architecture: str) -> None:
    for name, kernel in over_rows(architecture).items():
        if (title := row_title_of(name)) and title.element != "Any":
            ops = [op for _, op, _ in kernel.code]
            # (nll_loss reads nothing but the label's number where it makes gradients.)
            assert is_wide(ops, "LDG") or title.formula == "NllLoss", name
            assert is_wide(ops, "STG"), name


def test_all_kernels_over_lattices_are_present(architecture: str) -> None:
    titles = [lattice_title_of(name) for name in over_lattices(architecture)]
    expected = {StepTitle(s, number, moving) for s in LATTICE_STEPS for number in "fd" for moving in (False, True)}
    assert len(titles) == len(expected) and set(titles) == expected


def test_registers_and_occupancy_over_lattices(architecture: str) -> None:
    """Three blocks run at once. Two rows of two states lie in shared memory, and what a block adds up."""
    for name, kernel in over_lattices(architecture).items():
        title = lattice_title_of(name)
        assert title is not None and 0 < kernel.registers <= 80, name
        assert occupancy(kernel, architecture) >= 3 * THREADS / 2048, name
        parts, size = 3 if title.moving else 2, {"f": 4, "d": 8}[title.number]
        rows = 2 * 2 * parts * LATTICE_PLACES * size if title.step == "sweep" else 0
        assert rows <= kernel.shared <= rows + 256 + 1024, name


def test_all_kernels_over_pairs_are_present(architecture: str) -> None:
    titles = [pair_title_of(name) for name in over_pairs(architecture)]
    expected = {StepTitle(s, number, moving) for s in PAIR_STEPS for number in "fd" for moving in (False, True)}
    assert len(titles) == len(expected) and set(titles) == expected


def test_registers_and_occupancy_over_pairs(architecture: str) -> None:
    """In double three blocks run at once, or two with derivatives along a direction. Shared memory has what the warps
    of a block summed up, for columns each of their threads."""
    for name, kernel in over_pairs(architecture).items():
        title = pair_title_of(name)
        assert title is not None
        registers, blocks = (64, 4) if title.number == "f" else (128, 2) if title.moving else (80, 3)
        assert 0 < kernel.registers <= registers, name
        assert occupancy(kernel, architecture) >= blocks * THREADS / 2048, name
        assert kernel.shared <= (6 * 1024 if title.step == "add_to_columns" else 512) + 1024, name


def test_packs_over_pairs_are_loaded_and_stored_by_one_instruction(architecture: str) -> None:
    for name, kernel in over_pairs(architecture).items():
        if (title := pair_title_of(name)) and title.step != "add_to_columns":
            ops = [op for _, op, _ in kernel.code]
            assert is_wide(ops, "LDG") and is_wide(ops, "STG"), name


def test_all_kernels_of_triplets_are_present(architecture: str) -> None:
    titles = [triplet_title_of(name) for name in of_triplets(architecture)]
    assert len(titles) == 2 * len(TRIPLET_STEPS)
    assert set(titles) == {(step, number) for step in TRIPLET_STEPS for number in "fd"}


def test_registers_and_occupancy_of_triplets(architecture: str) -> None:
    """Two blocks run at once. Two tiles of numbers lie in shared memory, and what a block adds up."""
    for name, kernel in of_triplets(architecture).items():
        title = triplet_title_of(name)
        assert title is not None and 0 < kernel.registers <= 128, name
        assert occupancy(kernel, architecture) >= 2 * THREADS / 2048, name
        tiles = 2 * 64 * 17 * {"f": 4, "d": 8}[title[1]] if title[0] == "measure" else 0
        sums = THREADS * 8 if title[0] == "mine_sorted, all" else 0
        assert tiles + sums <= kernel.shared <= tiles + sums + 256 + 1024, name


def test_all_kernels_of_vectors_are_present(architecture: str) -> None:
    titles = [vector_title_of(name) for name in of_vectors(architecture)]
    expected = set()
    for (loss, swap), measures in VECTOR_FORMULAS.items():
        for measure in measures:
            of = loss, swap, measure
            expected |= {VectorTitle("strided", *of, number, f"Lb{moving}") for number in "fd" for moving in (0, 1)}
            if measure in ("Squares", "Cosine"):
                types = [("f", "f"), ("d", "d"), ("f", "Float16"), ("f", "BFloat16")]
                expected |= {VectorTitle("packed", *of, *of_numbers) for of_numbers in types}
    assert len(titles) == len(expected) and set(titles) == expected


def test_registers_and_packs_of_vectors(architecture: str) -> None:
    """Two blocks run at once, or one where numbers are dual ones of doubles."""
    for name, kernel in of_vectors(architecture).items():
        title = vector_title_of(name)
        assert title is not None
        dual_doubles = title.number == "d" and title.rest == "Lb1"
        assert 0 < kernel.registers <= (255 if dual_doubles else 128), name
        ops = [op for _, op, _ in kernel.code]
        assert title.way == "strided" or (is_wide(ops, "LDG") and is_wide(ops, "STG")), name


def test_the_oldest_architecture_is_there_as_ptx_for_all_others() -> None:
    assert NAMES[-1] == ARCHITECTURES[0].replace("sm", "compute")
    assert ARCHITECTURES[0] in "".join(disassembled("-lptx", _C.__file__))


def test_registers_and_occupancy(architecture: str) -> None:
    for name, kernel in elementwise(architecture).items():
        title = title_of(name)
        assert 0 < kernel.registers <= 40, name
        assert occupancy(kernel, architecture) >= 0.75, name
        assert kernel.shared <= MOST_SHARED[title.number if title else "f"], name


def test_no_local_memory(architecture: str) -> None:
    spilling = [name for name, kernel in kernels(architecture).items() if spills(kernel)]
    assert not spilling, f"{len(spilling)} kernels use local memory: {spilling[:5]}"


def test_packs_are_loaded_and_stored_by_one_instruction(architecture: str) -> None:
    for name, kernel in kernels(architecture).items():
        if (title := title_of(name)) and title.way == "dense":
            ops = [op for _, op, _ in kernel.code]
            assert is_wide(ops, "LDG") and is_wide(ops, "STG"), name


def test_instructions_an_element(architecture: str) -> None:
    for name, kernel in kernels(architecture).items():
        title = title_of(name)
        if title and title.way == "dense" and title.mode == 1:
            most = MOST_INSTRUCTIONS[title.formula, title.operands]
            allowed = {"float": most, "double": 13 / 4 * most}.get(title.element, 4 / 3 * most + 6)
            assert instructions_an_element(kernel, title.element) <= allowed, title


def test_no_atomics_on_floats(architecture: str) -> None:
    assert not [name for name, kernel in kernels(architecture).items() if has_float_atomic(kernel)]


def test_checks_can_fail() -> None:
    good = Kernel(registers=40, code=[(0, "LDG.E.128", "")])
    assert not spills(good) and not has_float_atomic(good) and occupancy(good, "sm_90") == 0.75
    assert spills(Kernel(code=[(0, "STL", "")])) and spills(Kernel(stack=8))
    assert has_float_atomic(Kernel(code=[(0, "RED.E.ADD.F32.FTZ.RN", "")]))
    assert occupancy(Kernel(registers=48), "sm_90") < 0.75
    assert occupancy(Kernel(registers=40, shared=38 * 1024), "sm_90") < 0.75
    assert not is_wide(["LDG.E.64"], "LDG")


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the path")
def test_a_kernel_that_spills_is_seen(tmp_path: Path) -> None:
    """More numbers are alive than 32 registers hold."""
    (tmp_path / "spilling.cu").write_text("""
        __global__ void __launch_bounds__(1024, 2) spilling(float* x) {
          float kept[64];
          for (int k = 0; k < 64; ++k) kept[k] = x[k * 1024 + threadIdx.x];
          __syncthreads();
          for (int k = 0; k < 64; ++k) x[(63 - k) * 1024 + threadIdx.x] = kept[k] * kept[(k * 7) % 64];
        }""")
    subprocess.run(["nvcc", "-arch=sm_90", "-cubin", "spilling.cu", "-o", "spilling.cubin"], cwd=tmp_path, check=True)
    (kernel,) = kernels_in(tmp_path / "spilling.cubin").values()
    assert spills(kernel)
