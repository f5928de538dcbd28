from hypothesis import settings

# No deadline: the machine that runs these may be busy, and the kernel is part of what is tested.
settings.register_profile("chrootfw", deadline=None, max_examples=150)
settings.load_profile("chrootfw")
