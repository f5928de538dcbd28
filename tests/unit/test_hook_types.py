"""The class for type checkers has the hooks as they are specified."""

import ast
import inspect

import pytest

from chrootfw import Hooks
from chrootfw.hooks import hook_types, specs


def methods():
    tree = ast.parse(inspect.getsource(hook_types))
    (typed_class, _) = (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    return {node.name: node for node in typed_class.body if isinstance(node, ast.FunctionDef)}


def test_it_has_every_hook_and_no_other():
    assert list(methods()) == list(specs.KINDS)


@pytest.mark.parametrize("hook", specs.KINDS)
def test_a_hook_has_the_arguments_and_the_answer_of_its_specification(hook):
    method = methods()[hook]
    specified = inspect.signature(getattr(specs, hook))
    arguments = {
        argument.arg: ast.unparse(argument.annotation) for argument in method.args.args[1:]
    }
    assert arguments == {
        name: parameter.annotation for name, parameter in specified.parameters.items()
    }
    answers = ast.unparse(method.returns).split(" | ")
    if specs.KINDS[hook] == "decide":
        given = specified.return_annotation.removesuffix(" | None")
        generator = f"Generator[None, {given}, {given}]"
        assert generator in ast.unparse(method.returns)
        answers = ast.unparse(method.returns).replace(f" | {generator}", "").split(" | ")
    assert answers == specified.return_annotation.split(" | ")


def test_it_costs_nothing_at_run_time():
    assert not [name for name in vars(Hooks) if name.startswith("chrootfw_")]
