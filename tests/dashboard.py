#!/usr/bin/env python3
"""Checks the structure of Grafana dashboards: tests/dashboard.py FILE...

What would make Grafana show a wrong or an empty dashboard without a word: ids or names that repeat, panels that overlap or
are too wide, variables that are used before they exist, panels without a query or with another data source than the
chosen one, legends that are sorted by what they do not show.

The rules of Grafana's dashboard-linter, https://github.com/grafana/dashboard-linter: data source, job and instance as variables
that are read again when the time changes, not editable, title, description, unit and query of each panel, matchers of job and
instance in each selector, counters only inside rate, irate or increase, and rates over $__rate_interval. Two differ. The linter
wants ".+" for all jobs and instances, which hides groups without these labels: variables of groups have ".*". A series without one of
the labels needs no matcher of it. Whether the queries answer is another test's business.
"""

import json
import re
import sys

BUILT_IN = {"__interval", "__interval_ms", "__rate_interval", "__range", "__range_s", "__from", "__to", "__data", "__field", "__value"}
SELECTOR = re.compile(r"([a-zA-Z_:][\w:]*)?\{([^{}]*(?:\$\{[^{}]*\}[^{}]*)*)\}")
RATE = re.compile(r"\b(rate|irate|increase)\(\w+(?:\{[^{}]*\})?\[([^\]]+)\]")
COUNTER = re.compile(r"(\b(?:rate|irate|increase)\()?\b([a-zA-Z_:][\w:]*_total)\b(?:\{[^{}]*\})?(\[)?")
WITHOUT_INSTANCE = {"anomaly_job_incident"}
VARIABLE = re.compile(r"\$(?:\{(\w+)(?::\w+)?\}|(\w+))")
VARIABLE_QUERY = re.compile(r"(?:label_names|label_values|metrics|query_result)\(.+\)")
# What is no metric in a query: labels of an aggregation or a matching, then words and names of functions.
LABELS = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^()]*\)")
NAME = re.compile(r"[a-zA-Z_:][\w:]*")
WORDS = {"and", "or", "unless", "bool", "offset", "start", "end", "inf", "nan"}
# The units of Grafana that are in use; a name that it does not know is shown as a suffix.
UNITS = {"none", "short", "percent", "percentunit", "bytes", "s", "ms", "cps", "ops", "reqps", "dateTimeAsIso", "bool"}
LEGEND_COLUMNS = {"max": "Max", "min": "Min", "mean": "Mean", "lastNotNull": "Last *", "sum": "Total"}


def variables_in(text):
    return {a or b for a, b in VARIABLE.findall(text)}


def overlap(a, b):
    return (
        a["x"] < b["x"] + b["w"]
        and b["x"] < a["x"] + a["w"]
        and a["y"] < b["y"] + b["h"]
        and b["y"] < a["y"] + a["h"]
    )


def bare_metrics(expression):
    """Yields the metrics of a query that have no braces."""
    code = re.sub(r'"(?:\\.|[^"\\])*"', '""', expression)
    code = LABELS.sub(" ", SELECTOR.sub(" ", code))
    code = re.sub(r"\[[^\]]*\]|\$\{?\w+\}?|\b\d[\w.]*", " ", code)
    for name in NAME.finditer(code):
        is_call = code[name.end() :].lstrip().startswith("(") or name.group() in ("by", "on")
        if not is_call and name.group().lower() not in WORDS:
            yield name.group()


def problems_of_query(expression):
    """Yields what the rules of dashboard-linter say about a query."""
    for metric, matchers in SELECTOR.findall(expression):
        wanted = {"job"} if metric in WITHOUT_INSTANCE else {"job", "instance"}
        for label in sorted(wanted):
            if not re.search(rf'\b{label}=~"\$\w+"', matchers):
                yield f"{metric or 'a selector'} has no matcher of {label}"
    for metric in bare_metrics(expression):
        yield f"{metric} has no matchers"
    for call, interval in RATE.findall(expression):
        is_fixed = call == "increase" and re.fullmatch(r"\d+[smhd]", interval)
        if interval != "$__rate_interval" and not is_fixed:
            yield f"{call} over [{interval}]"
    for call, metric, bracket in COUNTER.findall(expression):
        if not (call and bracket):
            yield f"the counter {metric} outside of rate, irate and increase"


def problems_of_variable(variable):
    """Yields what the rules of dashboard-linter say about a variable."""
    name = variable["name"]
    if variable["type"] == "datasource":
        if (name, variable.get("label"), variable["query"]) != ("datasource", "Data source", "prometheus"):
            yield "the data source is not called datasource, 'Data source'"
    elif variable["type"] == "query":
        query = variable["query"]["query"]
        if variable.get("refresh") != 2:
            yield f"variable {name!r} is not read again when the time changes"
        if not VARIABLE_QUERY.fullmatch(query) or query.count("(") != query.count(")"):
            yield f"variable {name!r}: {query!r} is no query of a variable"
    if name in ("job", "instance"):
        if variable["type"] != "query" or not variable.get("multi"):
            yield f"variable {name!r} is no query with several values"
        if variable.get("label") != name.capitalize():
            yield f"variable {name!r} has not the label {name.capitalize()!r}"
    if variable.get("includeAll") and re.search("job$|instance$", name):
        wanted = ".+" if "promforest_build_info" in query else ".*"
        if variable.get("allValue") != wanted:
            yield f"variable {name!r}: all is not {wanted!r}"


def problems_of_options(panel):
    """Yields what is wrong with the options of a panel."""
    defaults = panel.get("fieldConfig", {}).get("defaults", {})
    if not defaults.get("unit"):
        yield "no unit"
    for override in panel.get("fieldConfig", {}).get("overrides", []):
        for each in override["properties"]:
            if each["id"] == "unit" and each["value"] not in UNITS:
                yield f"the unit {each['value']!r}"
    if defaults.get("unit") and defaults["unit"] not in UNITS:
        yield f"the unit {defaults['unit']!r}"
    legend = panel.get("options", {}).get("legend", {})
    columns = {LEGEND_COLUMNS.get(calc) for calc in legend.get("calcs", [])}
    if legend.get("sortBy") and legend["sortBy"] not in columns:
        yield f"its legend is sorted by {legend['sortBy']!r}, which it does not show"
    if panel["type"] in ("bargauge", "gauge") and not ("min" in defaults and "max" in defaults):
        yield "bars without min and max, whose lengths mean nothing"


def problems(board):
    """Yields one sentence for each thing that is wrong."""
    for key in ("uid", "title", "schemaVersion", "panels", "templating", "time"):
        if key not in board:
            yield f"{key!r} is missing"
            return
    if "id" in board and board["id"] is not None:
        yield "an 'id' belongs to one Grafana server: leave it out"
    if board.get("editable") is not False:
        yield "it is editable"
    names = {variable["name"] for variable in board["templating"]["list"]}
    for name in sorted({"datasource", "job", "instance"} - names):
        yield f"no variable {name!r}"

    known = set()
    for variable in board["templating"]["list"]:
        name = variable["name"]
        if name in known:
            yield f"a second variable {name!r}"
        yield from problems_of_variable(variable)
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
        for problem in problems_of_query(annotation.get("expr", "")):
            yield f"annotation {annotation['name']!r}: {problem}"

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
        for problem in problems_of_options(panel):
            yield f"{name}: {problem}"
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
