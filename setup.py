"""Which folder holds which package; everything else about the distribution stands in pyproject.toml.

The packages come from three source roots, and a fourth (`recipes`, imported as `dla_recipes`) has another name than its
folder. The declarative `packages.find` of setuptools searches several roots but cannot rename, and it cannot be mixed
with an explicit list, which alone would silently leave a new subpackage out of the wheel. So the search is done here.
"""

from setuptools import find_packages, setup

PACKAGE_ROOTS = {"dla_train": ".", "dla_kernels": "kernels", "dla_data": "data"}

packages = ["dla_recipes"]
package_dir = {"dla_recipes": "recipes"}
for name, root in PACKAGE_ROOTS.items():
    packages += find_packages(root, include=[name, f"{name}.*"])
    package_dir[name] = name if root == "." else f"{root}/{name}"

setup(packages=packages, package_dir=package_dir)
