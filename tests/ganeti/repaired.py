"""Ganeti's own class with the two mistakes mended that keep it from starting (3.0.2) and from stopping (all).

It is what shows that a repair alone is not enough: everything else is Ganeti's own code. Copied to the nodes with a
``.pth`` file that imports it, in every Python process there.
"""

import sys


class _Mender:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "ganeti.hypervisor":
            return None
        import importlib.util

        sys.meta_path.remove(_Mender)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            _mend(module)

        spec.loader.exec_module = exec_module
        return spec


def _mend(module):
    from ganeti import constants, errors, utils

    class Repaired(module._HYPERVISOR_MAP[constants.HT_CHROOT]):
        def GetInstanceInfo(self, instance_name, hvparams=None):
            try:
                return super().GetInstanceInfo(instance_name, hvparams=hvparams)
            except errors.HypervisorError:  # 3.0.2: the caller wants None
                return None

        def StopInstance(self, instance, force=False, retry=False, name=None, timeout=None):
            root = self._InstanceDir(name or instance.name)
            if not (force or retry) and self._IsDirLive(root):
                script = (
                    instance.hvparams[constants.HV_INIT_SCRIPT] if instance else "/ganeti-chroot"
                )
                command = (
                    [] if timeout is None else ["timeout", str(timeout)]
                )  # list.extend() gives None
                result = utils.RunCmd([*command, "chroot", root, script, "stop"])
                if result.failed:
                    raise errors.HypervisorError(
                        f"Can't run the chroot stop script: {result.output}"
                    )
                retry = True
            super().StopInstance(instance, force=force, retry=retry, name=name, timeout=timeout)

    module._HYPERVISOR_MAP[constants.HT_CHROOT] = Repaired


sys.meta_path.insert(0, _Mender)
