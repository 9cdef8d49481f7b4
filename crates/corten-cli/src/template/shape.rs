//! What Go types a document's fields have, as far as templates can tell.
//!
//! Docker's command line applies templates to Go structures: a field that a document leaves
//! out or gives as `null` is there all the same, with its type's zero value.

use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use super::exec::display;

/// A Go type.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Shape {
    /// Not known: only what the document has is there.
    #[default]
    Any,
    /// `string`.
    Text,
    /// A moment, which documents have as text.
    Moment,
    /// A number of whatever kind.
    Number,
    /// `bool`.
    Bool,
    /// A pointer: `<nil>` when there is nothing.
    Pointer(&'static Shape),
    /// `[]T`.
    List(&'static Shape),
    /// `map[string]T`, whose keys are the user's.
    Map(&'static Shape),
    /// A structure and its fields.
    Struct(&'static [(&'static str, Shape)]),
}

static MOMENT: LazyLock<Value> = LazyLock::new(|| json!("0001-01-01T00:00:00Z"));
static NUMBER: LazyLock<Value> = LazyLock::new(|| json!(0));
static OBJECT: LazyLock<Value> = LazyLock::new(|| Value::Object(Map::new()));

impl Shape {
    /// The value that stands for nothing.
    pub(super) fn zero(self) -> &'static Value {
        match self {
            Self::Any | Self::Pointer(_) => &Value::Null,
            Self::Text => {
                static TEXT: Value = Value::String(String::new());
                &TEXT
            }
            Self::Moment => &MOMENT,
            Self::Number => &NUMBER,
            Self::Bool => &Value::Bool(false),
            Self::List(_) => {
                static LIST: Value = Value::Array(Vec::new());
                &LIST
            }
            Self::Map(_) | Self::Struct(_) => &OBJECT,
        }
    }

    /// What a list's or a map's elements are.
    pub(super) fn element(self) -> Self {
        match self {
            Self::List(element) | Self::Map(element) => *element,
            Self::Pointer(to) => to.element(),
            _ => Self::Any,
        }
    }

    /// What a key leads to; `None`: a structure's fields are others.
    pub(super) fn field(self, key: &str) -> Option<Self> {
        match self {
            Self::Pointer(to) => to.field(key),
            Self::Struct(fields) => fields
                .iter()
                .find(|(name, _)| name.eq_ignore_ascii_case(key))
                .map(|(_, shape)| *shape),
            other => Some(other.element()),
        }
    }
}

/// A value and what is known of its type.
#[derive(Debug, Clone)]
pub(super) struct Typed {
    pub(super) value: Value,
    pub(super) shape: Shape,
}

impl Typed {
    /// A value of a type; the type's zero value where it is nothing.
    pub(super) fn new(value: Value, shape: Shape) -> Self {
        let value = if value.is_null() {
            shape.zero().clone()
        } else {
            value
        };
        Self { value, shape }
    }

    /// As Go's `fmt` prints it. A set of names, as ports or volumes, is a map to empty structures
    /// there.
    pub(super) fn display(&self) -> String {
        match (&self.value, self.shape) {
            (Value::Object(map), Shape::Map(Shape::Struct([]))) => {
                let mut names: Vec<String> =
                    map.keys().map(|name| format!("{name}:{{}}")).collect();
                names.sort_unstable();
                format!("map[{}]", names.join(" "))
            }
            (value, _) => display(value),
        }
    }
}

impl From<Value> for Typed {
    fn from(value: Value) -> Self {
        Self {
            value,
            shape: Shape::Any,
        }
    }
}
