def countdown(example, completion):
    raise NotImplementedError
