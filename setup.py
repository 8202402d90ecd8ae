"""Puts what ships outside the packages into the wheel, as gdpo/shipped (`gdpo.files.shipped`)."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = ("assets/tiny-sd", "assets/tiny-vlcot", "assets/photos", "profiles", "params.yaml")


class WithShipped(build_py):
    """`build_py` that also copies `SHIPPED`; an editable installation reads the repository."""

    def run(self) -> None:
        """Copy the packages, then what ships."""
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / "gdpo" / "shipped"
        shutil.rmtree(target, ignore_errors=True)
        for name in SHIPPED:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if Path(name).is_dir() else shutil.copyfile
            copy(name, target / name)


setup(cmdclass={"build_py": WithShipped})
