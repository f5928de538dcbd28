"""Unmount orders of any tree: the default's is right, and every wrong one is named."""

import attrs
from hypothesis import given
from hypothesis import strategies as st

from chrootfw.model import Mount
from chrootfw.planning.mount_order import check_unmount_order, sort_for_unmounting

names = st.sampled_from(
    ["web1", "web10", "web", "a b", "new\nline", "\udcff", "#", "\\040"]
) | st.text(st.characters(exclude_characters="/\0", max_codepoint=0x2FF), min_size=1, max_size=4)


@st.composite
def trees(draw, min_size=0):
    """Mounts in a table's order: plain children, stacks, and mounts that hide what is below their target."""
    count = draw(st.integers(min_size, 9))
    ids = draw(st.permutations(range(20, 20 + count)))
    made = []
    for id in ids:
        if not made:
            made.append(Mount("/", "d", "ext4", (), "root", id, 7))
            continue
        parent = draw(st.sampled_from(made))
        kind = draw(st.sampled_from(["child", "grandchild", "stacked", "hiding"]))
        target = parent.target.rstrip("/")
        if kind == "stacked":
            target = parent.target
        elif kind == "hiding" and target.count("/") > 1:
            # A mount over a directory between a mount and its mount point.
            target = target.rpartition("/")[0]
            parent = next((m for m in made if m.id == parent.parent), parent)
        else:
            for _ in range(2 if kind == "grandchild" else 1):
                target += "/" + draw(names)
        made.append(Mount(target, "d", "ext4", (), "root", id, parent.id))
    return draw(st.permutations(made)) if draw(st.booleans()) else made


@given(trees())
def test_unmounting_order_is_children_first(tree):
    order = sort_for_unmounting(tree)
    assert check_unmount_order(tree, order) is None
    # Not by the code under test: nothing is taken away while something is mounted on it.
    left = {mount.id: mount for mount in tree}
    for mount in order:
        del left[mount.id]
        assert all(other.parent != mount.id for other in left.values())
    assert not left


@given(trees())
def test_unmounting_order_of_its_own_order_as_a_table_is_the_same(tree):
    """A table grows at its end, so an order to unmount is a table read backwards."""
    order = sort_for_unmounting(tree)
    assert sort_for_unmounting(order[::-1]) == order


@given(trees(min_size=1), st.data())
def test_a_dropped_mount_is_named(tree, data):
    order = sort_for_unmounting(tree)
    dropped = order.pop(data.draw(st.integers(0, len(order) - 1)))
    assert check_unmount_order(tree, order) == f"it drops {dropped.target} (mount ID {dropped.id})"


@given(trees(min_size=1), st.data())
def test_a_doubled_mount_is_named(tree, data):
    order = sort_for_unmounting(tree)
    twice = data.draw(st.sampled_from(order))
    order.insert(data.draw(st.integers(0, len(order))), twice)
    assert (
        check_unmount_order(tree, order) == f"it names {twice.target} (mount ID {twice.id}) twice"
    )


changes = st.sampled_from(
    [{"id": 5}, {"target": "/etc"}, {"parent": 6}, {"source": "x"}, {"at": "aux:x"}]
)


@given(trees(min_size=1), changes, st.booleans(), st.data())
def test_an_invented_mount_is_named(tree, change, instead, data):
    order = sort_for_unmounting(tree)
    where = data.draw(st.integers(0, len(order) - 1))
    invented = attrs.evolve(order[where], **change)
    order[where : where + instead] = [invented]
    wrong = check_unmount_order(tree, order)
    assert (
        wrong == f"it invents a mount that is not there: {invented.target} (mount ID {invented.id})"
    )


@given(trees(min_size=2), st.data())
def test_a_parent_before_its_child_is_named(tree, data):
    order = sort_for_unmounting(tree)
    by_id = {mount.id: mount for mount in tree}
    child = data.draw(st.sampled_from([mount for mount in order if mount.parent in by_id]))
    parent = by_id[child.parent]
    order.remove(parent)
    order.insert(data.draw(st.integers(0, order.index(child))), parent)
    wrong = check_unmount_order(tree, order)
    assert wrong is not None
    assert wrong.startswith(f"it puts {parent.target} before ")


@given(trees(), st.randoms(use_true_random=False))
def test_any_order_passes_if_and_only_if_children_come_first(tree, random):
    order = list(tree)
    random.shuffle(order)
    place = {mount.id: n for n, mount in enumerate(order)}
    right = all(place[mount.id] < place.get(mount.parent, len(order)) for mount in order)
    assert (check_unmount_order(tree, order) is None) is right
