"""Train recurrent character models with PyTorch: text in, run folder out.

The rooms and modules, from top to bottom; each imports only from those below it:

    command            `rill train`; loads PyTorch only to train
    report             `rill train report`
    loop               carries out a plan: trainer, checkpoints, optimizer, processes
    plan               what a run is to be, settled before PyTorch is loaded
    text | record      the data of a run | its folder, its recipe and its output
    nets               the models and their cells
    config, options, errors

From the rest of Rill, training imports only rill.vocabulary.
"""
