//! The page of the configuration file, the flags and the commands.

use super::write_table;
use crate::cli::Cli;
use crate::config;
use crate::yaml::{DefaultValue, Key, KeyTable};
use clap::{Arg, Command, CommandFactory};
use std::fmt::{self, Write};

const INTRODUCTION: &str = r#"# Configuration

This page is generated: `promforest docs configuration`.

`--config.file=FILE` names the file. `promforest check config FILE` prints every error and every warning with its line; a start
and a reload log the warnings. An unknown key is an error. A key of Prometheus' `remote_write` or `remote_read` that changes
nothing here is a warning, so that a block of Prometheus' file can be pasted. So are a key that another one leaves without
effect, a `transform` that does not suit the names in `match`, and the URL of an endpoint without a path. Durations are written as
in Prometheus: `15s`, `1h30m`, `14d`. Relative paths of other files start at the folder of the file; these files must exist when
it is read, and are read again at each use. [`deploy/promforest.yml`](../promforest.yml) has the defaults with comments. This
file is equivalent to no file:

```yaml
global:
  scrape_interval: 15s
remote_write:
  - url: http://localhost:9090/api/v1/write
remote_read:
  - url: http://localhost:9090/api/v1/read
registry:
  path: models
detectors:
  - name: node_network
    match:
      - '{__name__=~"node_network_(receive|transmit)_(bytes|packets)_total", device!~"veth.*|cali.*|tap.*"}'
    by: [job, instance]
    transform: rate(1m)
    window: 6h
    training: {history: 14d, min_history: 1h, interval: 1d}
```

"#;

/// Writes the page.
pub fn write(out: &mut String) -> fmt::Result {
    out.push_str(INTRODUCTION);
    for table in config::key_tables() {
        write_keys(out, &table)?;
    }
    let command = Cli::command();
    write_flags(out, &command)?;
    write_commands(out, &command)
}

fn write_keys(out: &mut String, table: &KeyTable) -> fmt::Result {
    let title = match table.paths {
        [""] => "Top level".to_string(),
        [path] => format!("`{path}`"),
        [first, ..] if first.contains('.') => {
            format!("`{}`", first.rsplit_once('.').map_or(*first, |(_, key)| key))
        }
        _ => "HTTP client".to_string(),
    };
    let condition = match table.condition {
        "" => String::new(),
        condition => format!(" with `{condition}`"),
    };
    writeln!(out, "## {title}{condition}\n")?;
    if table.paths.len() > 1 {
        let paths: Vec<String> = table.paths.iter().map(|path| format!("`{path}`")).collect();
        writeln!(out, "In {}.\n", paths.join(", "))?;
    }
    let row = |key: &Key| [format!("`{}`", key.name), default_text(key.default), key.text.to_string()];
    write_table(out, ["key", "default", "meaning"], table.keys.iter().map(row))
}

fn default_text(default: DefaultValue) -> String {
    match default {
        DefaultValue::Required(_) => "required".into(),
        DefaultValue::Yaml(value) => format!("`{value}`"),
        DefaultValue::Computed(text) => text.into(),
        DefaultValue::None => String::new(),
    }
}

fn write_flags(out: &mut String, command: &Command) -> fmt::Result {
    writeln!(
        out,
        "## Flags\n\nFlags of `promforest` and `promforest run`. They apply until the process ends.\n"
    )?;
    let flags = command.get_arguments().filter_map(|arg| Some((arg.get_long()?, arg)));
    let flags = flags.filter(|(name, _)| !["help", "version"].contains(name));
    let row = |(name, arg): (&str, &Arg)| {
        let defaults: Vec<String> =
            arg.get_default_values().iter().map(|value| format!("`{}`", value.to_string_lossy())).collect();
        let default = if arg.get_action().takes_values() { defaults.join(", ") } else { String::new() };
        [format!("`--{name}`"), default, help(arg.get_help())]
    };
    write_table(out, ["flag", "default", "meaning"], flags.map(row))
}

fn write_commands(out: &mut String, command: &Command) -> fmt::Result {
    writeln!(out, "## Commands\n\n`promforest COMMAND --help` lists the arguments of a command.\n")?;
    let mut rows = Vec::new();
    collect_commands("promforest", command, &mut rows);
    write_table(out, ["command", "does"], rows.into_iter())
}

/// The commands that do something, by their full names.
fn collect_commands(prefix: &str, command: &Command, rows: &mut Vec<[String; 2]>) {
    for command in command.get_subcommands() {
        let name = format!("{prefix} {}", command.get_name());
        if command.has_subcommands() {
            collect_commands(&name, command, rows);
        } else {
            rows.push([format!("`{name}`"), help(command.get_about())]);
        }
    }
}

fn help(text: Option<&clap::builder::StyledStr>) -> String {
    text.map(ToString::to_string).unwrap_or_default().replace('\n', " ")
}
