#!/usr/bin/env python3
"""Checks the structure of Grafana dashboards: tests/dashboard.py FILE...

What would make Grafana show a wrong or an empty dashboard without a word: ids or names that repeat, panels that overlap or
are too wide, variables that are used before they exist, panels without a query or with another data source than the
chosen one. The rules of Grafana's dashboard-linter that apply here: a unit and a description for each panel, matchers of job and
instance in each selector whose metric has these labels, and ranges of rates from $__rate_interval or fixed. Whether the queries
answer is another test's business.
"""

import json
import re
import sys

BUILT_IN = {"__interval", "__interval_ms", "__rate_interval", "__range", "__range_s", "__from", "__to", "__data", "__field", "__value"}
SELECTOR = re.compile(r"([a-zA-Z_:][\w:]*)?\{([^{}]*(?:\$\{[^{}]*\}[^{}]*)*)\}")
RATE = re.compile(r"\b(?:rate|irate|increase)\(\w+(?:\{[^{}]*\})?\[([^\]]+)\]")
WITHOUT_INSTANCE = {"anomaly_job_incident"}
VARIABLE = re.compile(r"\$(?:\{(\w+)(?::\w+)?\}|(\w+))")


def variables_in(text):
    return {a or b for a, b in VARIABLE.findall(text)}


def overlap(a, b):
    return (
        a["x"] < b["x"] + b["w"]
        and b["x"] < a["x"] + a["w"]
        and a["y"] < b["y"] + b["h"]
        and b["y"] < a["y"] + a["h"]
    )


def problems_of_query(expression):
    """Yields what the rules of dashboard-linter say about a query."""
    for metric, matchers in SELECTOR.findall(expression):
        wanted = {"job"} if metric in WITHOUT_INSTANCE else {"job", "instance"}
        for label in sorted(wanted):
            if not re.search(rf'\b{label}=~"\$\w+"', matchers):
                yield f"{metric or 'a selector'} has no matcher of {label}"
    for interval in RATE.findall(expression):
        if interval != "$__rate_interval" and not re.fullmatch(r"\d+[smhd]", interval):
            yield f"a rate over [{interval}]"


def problems(board):
    """Yields one sentence for each thing that is wrong."""
    for key in ("uid", "title", "schemaVersion", "panels", "templating", "time"):
        if key not in board:
            yield f"{key!r} is missing"
            return
    if "id" in board and board["id"] is not None:
        yield "an 'id' belongs to one Grafana server: leave it out"

    known = set()
    for variable in board["templating"]["list"]:
        name = variable["name"]
        if name in known:
            yield f"a second variable {name!r}"
        query = variable.get("query", "")
        if variable["type"] == "query":
            query = query["query"]
            if variable["datasource"].get("uid") != "${datasource}":
                yield f"variable {name!r}: its data source is not $datasource"
            if variable.get("definition") != query:
                yield f"variable {name!r}: definition and query differ"
            for other in sorted(variables_in(query) - known - BUILT_IN):
                yield f"variable {name!r} uses ${other}, which is not defined before it"
        known.add(name)
    if not board["templating"]["list"] or board["templating"]["list"][0]["type"] != "datasource":
        yield "the first variable is not the data source"
    known |= BUILT_IN

    for annotation in board.get("annotations", {}).get("list", []):
        for other in sorted(variables_in(annotation.get("expr", "")) - known):
            yield f"annotation {annotation['name']!r} uses ${other}, which is not defined"

    ids, titles, places = set(), set(), []
    for panel in board["panels"]:
        name = f"panel {panel.get('id')} ({panel.get('title')})"
        if not isinstance(panel.get("id"), int) or panel["id"] in ids:
            yield f"{name}: its id is missing or repeats"
        ids.add(panel.get("id"))
        if not panel.get("title") or panel["title"] in titles:
            yield f"{name}: its title is missing or repeats"
        titles.add(panel.get("title"))

        place = panel["gridPos"]
        if place["x"] < 0 or place["y"] < 0 or place["w"] < 1 or place["h"] < 1 or place["x"] + place["w"] > 24:
            yield f"{name}: does not fit into the 24 columns"
        for other, where in places:
            if overlap(place, where):
                yield f"{name}: overlaps {other}"
        places.append((name, place))

        if panel["type"] == "row":
            continue
        if panel.get("datasource", {}).get("uid") != "${datasource}":
            yield f"{name}: its data source is not $datasource"
        if not panel.get("description"):
            yield f"{name}: no description"
        if not panel.get("fieldConfig", {}).get("defaults", {}).get("unit"):
            yield f"{name}: no unit"
        targets = panel.get("targets", [])
        if not targets:
            yield f"{name}: no query"
        if len({target["refId"] for target in targets}) != len(targets):
            yield f"{name}: refIds repeat"
        for target in targets:
            if not target.get("expr"):
                yield f"{name}: query {target['refId']} is empty"
            for other in sorted(variables_in(target.get("expr", "")) - known):
                yield f"{name}: query {target['refId']} uses ${other}, which is not defined"
            for problem in problems_of_query(target.get("expr", "")):
                yield f"{name}: query {target['refId']}: {problem}"
            if target.get("datasource", {}).get("uid", "${datasource}") != "${datasource}":
                yield f"{name}: query {target['refId']} has a data source of its own"


def main(paths):
    wrong = 0
    uids = {}
    for path in paths:
        with open(path, encoding="utf-8") as file:
            board = json.load(file)
        found = list(problems(board))
        if board.get("uid") in uids:
            found.append(f"has the uid of {uids[board['uid']]}")
        uids[board.get("uid")] = path
        for problem in found:
            print(f"{path}: {problem}")
        wrong += len(found)
        print(f"{path}: {len(board.get('panels', []))} panels, {len(found)} problems")
    return 1 if wrong or not paths else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
