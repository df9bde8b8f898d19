def swap_neurons(model):
    return model
