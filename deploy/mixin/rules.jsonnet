// The alert rules as YAML with folded lines:
//   jsonnet --string --output-file deploy/prometheus/promforest.rules.yml deploy/mixin/rules.jsonnet
local groups = (import 'mixin.libsonnet').prometheusAlerts.groups;

local width = 110;
local indented(text, indent) = std.join('\n', [indent + line for line in std.split(text, '\n')]);

// Breaks a line at single spaces, which a folded scalar of YAML joins again.
local wrapped(text) =
  local add(lines, word) =
    local last = lines[std.length(lines) - 1];
    if last == '' then lines[:std.length(lines) - 1] + [word]
    else if std.length(last) + 1 + std.length(word) > width then lines + [word]
    else lines[:std.length(lines) - 1] + [last + ' ' + word];
  std.join('\n', std.foldl(add, std.split(text, ' '), ['']));

local scalar(text, indent) =
  local stripped = std.rstripChars(text, '\n');
  if std.member(stripped, '\n') then (if stripped == text then '|-\n' else '|\n') + indented(stripped, indent + '  ')
  else if std.length(text) > width then '>-\n' + indented(wrapped(text), indent + '  ')
  else if std.length(std.findSubstr('"', text)) > 0 || std.member('{`', text[0])
          || std.length(std.findSubstr(': ', text) + std.findSubstr(' #', text)) > 0
  then "'" + std.strReplace(text, "'", "''") + "'"
  else text;

local keys = ['alert', 'expr', 'for', 'keep_firing_for'];
local map(object, names, indent) = [indent + '%s: %s' % [name, scalar(object[name], indent)] for name in names];

local rule(rule) =
  local indent = '        ';
  local lines = map(rule, [key for key in keys if std.objectHas(rule, key)], indent)
                + [indent + 'labels:'] + map(rule.labels, std.objectFields(rule.labels), indent + '  ')
                + [indent + 'annotations:']
                + map(rule.annotations, ['summary', 'description', 'action', 'dashboard', 'runbook_url'], indent + '  ');
  '      - ' + std.lstripChars(std.join('\n', lines), ' ');

|||
  # Alerts on promforest's scores and on promforest itself. They expect the scrape job `promforest` with
  # honor_labels, as in prometheus.yml. Tests: promtool test rules promforest.rules.test.yml
  #
  # Generated from ../mixin/alerts.libsonnet, where comments say why. runbook_url names ../reference/alerts.md as
  # it is installed; put the address of your copy there.

|||
+ 'groups:\n'
+ std.join('\n', [
  '  - name: %s\n    rules:\n%s\n' % [group.name, std.join('\n\n', [rule(each) for each in group.rules])]
  for group in groups
])
