"""The cases of the variants: each option by itself, and some together."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from mpmath import mpf

from spec.dyadic import Record
from spec.families import (
    HOLES,
    Wanted,
    blank_padding,
    layer,
    layer_config,
    module,
    module_config,
    scaled,
)

KEY = {"key": ["9817324562209845671", "2654435769123456789"]}
GRAD = ["XPL-GRAD-001", "XPL-VAR-017"]


def peepholes(wanted: Wanted) -> Record:
    return layer(
        wanted,
        start=23,
        T=4,
        B=3,
        config=layer_config(2, 5, variant={"peepholes": True}),
        comment="Peepholes: i and f see the state before the step, o the state after it.",
        clauses=["XPL-VAR-001", *GRAD],
    )


def peepholes_projection(wanted: Wanted) -> Record:
    config = layer_config(
        2, 3, proj_size=1, bias=False, reverse=True, lengths=[5, 0, 2, 4], variant={"peepholes": True}
    )
    return layer(
        wanted,
        start=102,
        T=5,
        B=4,
        config=config,
        comment="Peepholes, a projection, backward, a ragged batch with NaN padding.",
        clauses=["XPL-VAR-001", "XPL-CELL-004", "XPL-SEQ-004", "XPL-SEQ-005", *GRAD],
        change=partial(blank_padding, config=config),
    )


def gate_clip(wanted: Wanted) -> Record:
    return layer(
        wanted,
        start=254,
        T=4,
        B=2,
        config=layer_config(5, 3, variant={"gate_clip": "0.75"}),
        comment="Pre-activations of all gates clipped, from both sides.",
        clauses=["XPL-VAR-005", *GRAD],
    )


def cell_clip(wanted: Wanted) -> Record:
    return layer(
        wanted,
        start=26,
        T=5,
        B=2,
        config=layer_config(4, 3, variant={"cell_clip": "0.375"}),
        comment="The new cell state clipped, from both sides, before h is made of it.",
        clauses=["XPL-VAR-006", *GRAD],
    )


def clips_peepholes(wanted: Wanted) -> Record:
    config = layer_config(
        5,
        2,
        reverse=True,
        lengths=[3, 4, 1],
        variant={"peepholes": True, "gate_clip": "0.625", "cell_clip": "0.375"},
    )
    return layer(
        wanted,
        start=381,
        T=4,
        B=3,
        config=config,
        comment="Both clips with peepholes, backward over a ragged batch.",
        clauses=["XPL-VAR-001", "XPL-VAR-005", "XPL-VAR-006", "XPL-VAR-018", *GRAD],
        change=partial(blank_padding, config=config),
    )


def coupled(wanted: Wanted) -> Record:
    return layer(
        wanted,
        start=47,
        T=4,
        B=3,
        config=layer_config(2, 5, variant={"coupled": True}),
        comment="f = 1 - i; the rows of f are not used.",
        clauses=["XPL-VAR-002", *GRAD],
    )


def coupled_layer_norm(wanted: Wanted) -> Record:
    variant = {"coupled": True, "peepholes": True, "layer_norm": True, "activations": COUPLED}
    return layer(
        wanted,
        start=296,
        T=4,
        B=5,
        config=layer_config(2, 3, variant=variant),
        comment="Coupled gates whose function is not symmetric, peepholes, and norms that see the rows of f.",
        clauses=["XPL-VAR-002", "XPL-VAR-003", "XPL-VAR-007", "XPL-VAR-018", *GRAD],
    )


COUPLED = [["softsign"], ["elu"], ["scaled_tanh", "1.25", "0.75"]]
ACTIVATIONS = {
    "hard-sigmoid-softsign-softplus": [["hard_sigmoid"], ["softsign"], ["softplus"]],
    "affine-leaky-relu-elu": [["affine", "0.75", "0.25"], ["leaky_relu"], ["elu", "0.75"]],
    "scaled-tanh-thresholded-relu-relu": [
        ["scaled_tanh", "1.25", "0.75"],
        ["thresholded_relu", "0.25"],
        ["relu"],
    ],
    "softplus-identity-thresholded-relu": [["softplus"], ["identity"], ["thresholded_relu"]],
    "hard-sigmoid-elu-affine": [["hard_sigmoid", "0.375", "0.25"], ["elu"], ["affine"]],
    "relu-scaled-tanh-leaky-relu": [["relu"], ["scaled_tanh"], ["leaky_relu", "0.25"]],
}


def activations(wanted: Wanted, name: str, start: int) -> Record:
    return layer(
        wanted,
        start=start,
        T=4,
        B=2,
        config=layer_config(5, 3, variant={"activations": ACTIVATIONS[name]}),
        comment="Other functions for the gates, for g and for c.",
        clauses=["XPL-VAR-003", "XPL-VAR-004", *GRAD],
    )


def activations_of_two_directions(wanted: Wanted) -> Record:
    six = [["hard_sigmoid"], ["softsign"], ["affine", "0.5", "0.25"], ["sigmoid"], ["relu"], ["softplus"]]
    return module(
        wanted,
        start=388,
        T=4,
        B=3,
        config=module_config(5, 2, bidirectional=True, lengths=[2, 4, 1], variant={"activations": six}),
        comment="Six functions: three forward, three backward.",
        clauses=["XPL-VAR-003", "XPL-VAR-004", "XPL-STK-002", *GRAD],
    )


def far(inputs: Record) -> None:
    """Numbers whose exponential no format holds, on both sides of zero."""
    inputs["x"][0][0] = [mpf(3000), mpf(-7)]
    inputs["x"][2][1] = [mpf(-3000), mpf(5)]
    inputs["x"][3][2] = [mpf("0.5"), mpf(2000)]
    inputs["c_0"][3] = [mpf(-900), mpf(-800), mpf(-700)]


def activations_far(wanted: Wanted) -> Record:
    functions = [["sigmoid"], ["softplus"], ["elu"]]
    return layer(
        wanted,
        start=99,
        T=5,
        B=4,
        config=layer_config(2, 3, variant={"activations": functions}),
        comment="Functions at numbers whose exponential overflows or vanishes.",
        clauses=["XPL-VAR-003", "XPL-NUM-003", *GRAD],
        change=far,
    )


def small(inputs: Record) -> None:
    """A row whose sums are so small that the added 1e-5 changes their variance."""
    for rows in inputs["x"]:
        rows[0] = scaled(rows[0], mpf(2) ** -4)
    inputs["h_0"][0] = scaled(inputs["h_0"][0], mpf(2) ** -4)


def layer_norm(wanted: Wanted) -> Record:
    return layer(
        wanted,
        start=24,
        T=4,
        B=3,
        config=layer_config(2, 5, variant={"layer_norm": True}),
        comment="Normalised sums and output; one row's sums are nearly equal.",
        clauses=["XPL-VAR-007", "XPL-VAR-008", *GRAD],
        change=small,
    )


def layer_norm_projection(wanted: Wanted) -> Record:
    config = layer_config(
        4, 3, proj_size=2, bias=False, reverse=True, lengths=[6, 0, 3, 1, 5], variant={"layer_norm": True}
    )
    return layer(
        wanted,
        start=224,
        T=6,
        B=5,
        config=config,
        comment="Norms without any bias, with a projection, backward over a ragged batch with NaN padding.",
        clauses=["XPL-VAR-007", "XPL-VAR-008", "XPL-CELL-004", "XPL-SEQ-004", "XPL-SEQ-005", *GRAD],
        change=partial(blank_padding, config=config),
    )


def layer_norm_stacked(wanted: Wanted) -> Record:
    return module(
        wanted,
        start=48,
        T=5,
        B=4,
        config=module_config(2, 3, num_layers=2, variant={"layer_norm": True}),
        comment="Norms in two layers, each with gains of its own.",
        clauses=["XPL-VAR-007", "XPL-VAR-008", "XPL-STK-001", *GRAD],
    )


def layer_norm_two_directions(wanted: Wanted) -> Record:
    config = module_config(2, 3, bidirectional=True, lengths=[2, 5, 0, 3], variant={"layer_norm": True})
    return module(
        wanted,
        start=160,
        T=5,
        B=4,
        config=config,
        comment="Norms in two directions, each with gains of its own, over a ragged batch.",
        clauses=["XPL-VAR-007", "XPL-VAR-008", "XPL-STK-002", *GRAD],
    )


ZONEOUT = {"zoneout_h": "0.25", "zoneout_c": "0.5"}


def zoneout_expectation(wanted: Wanted) -> Record:
    config = layer_config(3, 4, reverse=True, lengths=[5, 2], variant=ZONEOUT)
    return layer(
        wanted,
        start=64,
        T=5,
        B=2,
        config=config,
        comment="Zoneout without noise: the expectation; a step that does not exist holds the state wholly.",
        clauses=["XPL-VAR-010", "XPL-VAR-011", *GRAD],
        change=partial(blank_padding, config=config),
    )


def zoneout_noise(wanted: Wanted) -> Record:
    config = layer_config(3, 5, mask=HOLES, variant=ZONEOUT, noise=KEY)
    return layer(
        wanted,
        start=144,
        T=6,
        B=4,
        config=config,
        comment="Zoneout with the masks of a given key, over a mask with holes.",
        clauses=["XPL-VAR-009", "XPL-VAR-011", "XPL-VAR-016", "XPL-SEQ-007", *GRAD],
        change=partial(blank_padding, config=config),
    )


def zoneout_noise_stacked(wanted: Wanted) -> Record:
    config = module_config(
        1, 3, num_layers=2, bidirectional=True, proj_size=2, bias=False, variant=ZONEOUT, noise=KEY
    )
    return module(
        wanted,
        start=29,
        T=5,
        B=4,
        config=config,
        comment="Zoneout in two layers and directions with a projection, each with masks of its own.",
        clauses=["XPL-VAR-009", "XPL-VAR-011", "XPL-VAR-016", *GRAD],
    )


def recurrent_dropout(wanted: Wanted) -> Record:
    config = layer_config(3, 4, variant={"recurrent_dropout": "0.25"}, noise=KEY)
    return layer(
        wanted,
        start=401,
        T=5,
        B=2,
        config=config,
        comment="One mask for the state h of all steps, on its way into the sums alone.",
        clauses=["XPL-VAR-012", "XPL-VAR-016", *GRAD],
    )


def recurrent_dropout_stacked(wanted: Wanted) -> Record:
    config = module_config(
        4,
        3,
        num_layers=2,
        proj_size=2,
        lengths=[3, 6, 0, 1, 5],
        variant={"recurrent_dropout": "0.5"},
        noise=KEY,
    )
    return module(
        wanted,
        start=90,
        T=6,
        B=5,
        config=config,
        comment="A mask for each layer's projected state, over a ragged batch.",
        clauses=["XPL-VAR-012", "XPL-VAR-016", "XPL-CELL-004", *GRAD],
    )


def input_dropout(wanted: Wanted) -> Record:
    config = module_config(
        3, 2, num_layers=2, lengths=[4, 1, 5, 3], bidirectional=True, input_dropout="0.25", noise=KEY
    )
    return module(
        wanted,
        start=266,
        T=5,
        B=4,
        config=config,
        comment="Masks for the input of both layers, x among them, one for all steps.",
        clauses=["XPL-VAR-013", "XPL-VAR-016", *GRAD],
    )


def weight_dropout(wanted: Wanted) -> Record:
    config = module_config(
        1, 3, num_layers=2, bidirectional=True, proj_size=2, bias=False, weight_dropout="0.5", noise=KEY
    )
    return module(
        wanted,
        start=12,
        T=5,
        B=4,
        config=config,
        comment="Recurrent weights dropped, once for a call, in two layers and directions.",
        clauses=["XPL-VAR-015", "XPL-VAR-016", *GRAD],
    )


def merge(wanted: Wanted, how: str, start: int) -> Record:
    config = module_config(3, 2, num_layers=2, bidirectional=True, lengths=[4, 5, 0, 2], merge=how)
    return module(
        wanted,
        start=start,
        T=5,
        B=4,
        config=config,
        comment=f"Two layers and directions, their outputs merged by {how!r}.",
        clauses=["XPL-VAR-014", "XPL-STK-001", "XPL-SEQ-003", *GRAD],
    )


def everything(wanted: Wanted) -> Record:
    variant = {
        "peepholes": True,
        "layer_norm": True,
        "gate_clip": "1.25",
        "cell_clip": "0.625",
        "activations": [["hard_sigmoid", "0.25", "0.5"], ["softsign"], ["scaled_tanh", "1.5", "0.75"]],
        **ZONEOUT,
        "recurrent_dropout": "0.25",
    }
    config = layer_config(
        4, 3, proj_size=2, reverse=True, lengths=[5, 6, 0, 2, 3], variant=variant, noise=KEY
    )
    return layer(
        wanted,
        start=71,
        T=6,
        B=5,
        config=config,
        comment="Every option but coupled gates at once: what comes before what.",
        clauses=["XPL-VAR-018", "XPL-VAR-001", "XPL-VAR-005", "XPL-VAR-006", "XPL-VAR-009", *GRAD],
        change=partial(blank_padding, config=config),
    )


def everything_stacked(wanted: Wanted) -> Record:
    variant = {"peepholes": True, "recurrent_dropout": "0.5", **ZONEOUT}
    config = module_config(
        1,
        2,
        num_layers=2,
        bidirectional=True,
        variant=variant,
        merge="sum",
        dropout={"p": "0.25", **KEY},
        input_dropout="0.25",
        weight_dropout="0.25",
        noise=KEY,
    )
    return module(
        wanted,
        start=170,
        T=4,
        B=3,
        config=config,
        comment="Every kind of noise at once, in two layers and directions.",
        clauses=["XPL-VAR-016", "XPL-VAR-018", "XPL-DRP-001", "XPL-DRP-003", *GRAD],
    )


STARTS = dict(zip(ACTIVATIONS, (57, 260, 260, 280, 129, 219), strict=True))
CASES: dict[str, Callable[[Wanted], Record]] = {
    "variant-peepholes": peepholes,
    "variant-peepholes-projection": peepholes_projection,
    "variant-gate-clip": gate_clip,
    "variant-cell-clip": cell_clip,
    "variant-clips-peepholes": clips_peepholes,
    "variant-coupled": coupled,
    "variant-coupled-layer-norm": coupled_layer_norm,
    **{
        f"variant-activations-{name}": partial(activations, name=name, start=start)
        for name, start in STARTS.items()
    },
    "variant-activations-far": activations_far,
    "variant-activations-two-directions": activations_of_two_directions,
    "variant-layer-norm": layer_norm,
    "variant-layer-norm-projection": layer_norm_projection,
    "variant-layer-norm-stacked": layer_norm_stacked,
    "variant-layer-norm-two-directions": layer_norm_two_directions,
    "variant-zoneout-expectation": zoneout_expectation,
    "variant-zoneout-noise": zoneout_noise,
    "variant-zoneout-noise-stacked": zoneout_noise_stacked,
    "variant-recurrent-dropout": recurrent_dropout,
    "variant-recurrent-dropout-stacked": recurrent_dropout_stacked,
    "variant-input-dropout": input_dropout,
    "variant-weight-dropout": weight_dropout,
    **{
        f"variant-merge-{how}": partial(merge, how=how, start=start)
        for how, start in {"sum": 20, "mean": 120, "product": 220, "none": 320}.items()
    },
    "variant-everything": everything,
    "variant-everything-stacked": everything_stacked,
}
