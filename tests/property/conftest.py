from hypothesis import settings

# No deadline: the machine that runs these may be busy, and the kernel is part of what is tested.
settings.register_profile("chrootfw", deadline=None, max_examples=150)
settings.load_profile("chrootfw")


def pytest_configure(config):
    # Hypothesis imports libcst, where it is installed, to report a failure; its warning would end the whole run.
    config.addinivalue_line(
        "filterwarnings", "ignore:mypy_extensions.TypedDict is deprecated:DeprecationWarning"
    )
