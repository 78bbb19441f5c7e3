//! How results are shown: a table for people, JSON or YAML for programs. Rows are JSON objects; a table shows some of
//! their fields, the other formats everything.

use std::time::Duration;

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value};

/// The format of results.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns for people.
    #[default]
    Table,
    /// A JSON array of objects.
    Json,
    /// The same as YAML.
    Yaml,
}

/// One result.
pub type Row = Map<String, Value>;

/// Makes a row of what `serde_json::json!({...})` gives.
pub fn row(value: Value) -> Row {
    match value {
        Value::Object(row) => row,
        other => Row::from_iter([("value".to_owned(), other)]),
    }
}

/// The text of results. Columns are `TITLE` or `TITLE=field`; a title alone means the field of that name in lower case. With
/// `|bytes` behind it a number is shown as people write sizes.
pub fn render(format: Format, columns: &[&str], rows: &[Row]) -> anyhow::Result<String> {
    Ok(match format {
        Format::Json => serde_json::to_string_pretty(rows)? + "\n",
        Format::Yaml => serde_yaml::to_string(rows)?,
        Format::Table => table(columns, rows),
    })
}

fn table(columns: &[&str], rows: &[Row]) -> String {
    let columns: Vec<(&str, String, bool)> = columns
        .iter()
        .map(|column| {
            let (column, bytes) = match column.strip_suffix("|bytes") {
                Some(column) => (column, true),
                None => (*column, false),
            };
            match column.split_once('=') {
                Some((title, field)) => (title, field.to_owned(), bytes),
                None => (column, column.to_lowercase(), bytes),
            }
        })
        .collect();
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(columns.iter().map(|(title, ..)| *title));
    for row in rows {
        table.add_row(columns.iter().map(|(_, field, bytes)| match (row.get(field).and_then(Value::as_u64), bytes) {
            (Some(number), true) => size(number),
            _ => cell(row.get(field)),
        }));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    let mut text: String = table.lines().map(|line| line.trim_end().to_owned() + "\n").collect();
    if rows.is_empty() {
        text = "(nothing)\n".to_owned();
    }
    text
}

fn cell(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.lines().next().unwrap_or_default().to_owned(),
        Some(Value::Array(items)) => items.iter().map(|item| cell(Some(item))).collect::<Vec<_>>().join(","),
        Some(other) => other.to_string(),
    }
}

/// Bytes as people write them.
pub fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// Seconds since 1970 as a date in UTC; nothing for 0.
pub fn date(unix_seconds: i64) -> String {
    match unix_seconds {
        0 => String::new(),
        seconds => jiff::Timestamp::from_second(seconds).map(|time| time.to_string()).unwrap_or_default(),
    }
}

/// A bar for a transfer of known size, on standard error; hidden when that is not a terminal.
pub fn transfer(total: u64, what: &str) -> ProgressBar {
    let bar = ProgressBar::new(total).with_message(what.to_owned());
    let template = "{msg} [{bar:30}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {elapsed}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tables_show_the_named_fields() {
        let rows = [row(json!({"node": "cp-1", "up": true, "addresses": ["a", "b"], "secret": 1})), row(json!({"node": "worker-1"}))];
        let text = render(Format::Table, &["NODE", "UP", "ADDR=addresses"], &rows).unwrap();
        assert_eq!(text, "NODE       UP     ADDR\ncp-1       true   a,b\nworker-1\n");
        assert_eq!(render(Format::Table, &["NODE"], &[]).unwrap(), "(nothing)\n");
        let sizes = [row(json!({"size": 3_221_225_472_u64})), row(json!({"size": null}))];
        assert_eq!(render(Format::Table, &["BYTES=size|bytes"], &sizes).unwrap(), "BYTES\n3.00 GiB\n\n");
    }

    #[test]
    fn programs_get_everything() {
        let rows = [row(json!({"node": "cp-1", "n": 1}))];
        assert_eq!(
            serde_json::from_str::<Value>(&render(Format::Json, &["NODE"], &rows).unwrap()).unwrap(),
            json!([{"node": "cp-1", "n": 1}])
        );
        assert_eq!(render(Format::Yaml, &["NODE"], &rows).unwrap(), "- node: cp-1\n  n: 1\n");
    }

    #[test]
    fn dates_are_utc() {
        assert_eq!(date(0), "");
        assert_eq!(date(1_000_000_000), "2001-09-09T01:46:40Z");
    }
}
