#!/usr/bin/env python3
"""Checks deploy/compose.yaml as far as that goes without containers: tests/compose.py FILE (needs PyYAML)

It parses; images are pinned; volumes, networks, services and files that it names exist.
"""

import pathlib
import sys

import yaml


def named(dependencies):
    """The names in a list, or the keys of a mapping."""
    return list(dependencies or [])


def problems(compose, folder):
    services = compose["services"]
    for name, service in services.items():
        image = service.get("image", "")
        if "build" in service:
            build = service["build"]
            build = {"context": build} if isinstance(build, str) else build
            dockerfile = folder / build["context"] / build.get("dockerfile", "Dockerfile")
            if not dockerfile.is_file():
                yield f"{name}: no {dockerfile}"
        elif ":" not in image or image.endswith(":latest"):
            yield f"{name}: image {image!r} is not pinned"
        for other in named(service.get("depends_on")):
            if other not in services:
                yield f"{name}: depends on {other}, which is no service"
            elif not set(services[other].get("profiles", [])) <= set(service.get("profiles", [])):
                yield f"{name}: depends on {other}, which is only there with a profile"
        for network in named(service.get("networks")):
            if network not in compose["networks"]:
                yield f"{name}: network {network} is not declared"
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                if not (folder / source).exists():
                    yield f"{name}: no {source}"
            elif not source.startswith("/") and source not in compose["volumes"]:
                yield f"{name}: volume {source} is not declared"
        for env_file in service.get("env_file", []):
            if not (folder / (env_file["path"] + ".example")).is_file():
                yield f"{name}: no example of {env_file['path']}"


def main(path):
    path = pathlib.Path(path)
    compose = yaml.safe_load(path.read_text(encoding="utf-8"))
    found = list(problems(compose, path.parent))
    for problem in found:
        print(f"{path}: {problem}")
    print(f"{path}: {len(compose['services'])} services, {len(found)} problems")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
