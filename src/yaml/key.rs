//! Descriptions of the keys that a section reads, for the reference of the configuration.
//!
//! They stand beside the code that reads the section. Tests compare them with the keys and the defaults that the reader
//! accepts.

/// A key of a section.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Name in the file.
    pub name: &'static str,
    /// Value that applies if the file omits the key.
    pub default: DefaultValue,
    /// Meaning and bounds, as Markdown.
    pub text: &'static str,
}

/// The default of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DefaultValue {
    /// The file must have the key; an example as YAML.
    Required(&'static str),
    /// A value, as YAML.
    Yaml(&'static str),
    /// A value that depends on other keys, as Markdown.
    Computed(&'static str),
    /// No value.
    None,
}

impl Key {
    /// A key that the file must have.
    pub const fn required(name: &'static str, example: &'static str, text: &'static str) -> Self {
        Self { name, default: DefaultValue::Required(example), text }
    }

    /// A key with a default.
    pub const fn with_default(name: &'static str, yaml: &'static str, text: &'static str) -> Self {
        Self { name, default: DefaultValue::Yaml(yaml), text }
    }

    /// A key whose default depends on other keys.
    pub const fn computed(name: &'static str, default: &'static str, text: &'static str) -> Self {
        Self { name, default: DefaultValue::Computed(default), text }
    }

    /// A key without a default.
    pub const fn optional(name: &'static str, text: &'static str) -> Self {
        Self { name, default: DefaultValue::None, text }
    }
}

/// A table of the reference: keys that are read in the same places of the file.
#[derive(Clone, Debug)]
pub struct KeyTable {
    /// The sections that have these keys, such as `remote_write[].queue_config`.
    pub paths: &'static [&'static str],
    /// A further line of the section without which it does not have these keys; empty if there is none.
    pub condition: &'static str,
    /// The keys.
    pub keys: &'static [Key],
}

impl KeyTable {
    /// A table of the keys of these sections.
    pub const fn new(paths: &'static [&'static str], keys: &'static [Key]) -> Self {
        Self { paths, condition: "", keys }
    }

    /// The table of sections that have this line.
    pub const fn with_condition(self, condition: &'static str) -> Self {
        Self { condition, ..self }
    }
}
