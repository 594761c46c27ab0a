//! How commands print: tables for people, JSON for programs.

use std::io::{self, ErrorKind, Write};

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};

use crate::sync::preflight::{Check, Verdict};
use crate::telemetry::one_line;

/// Prints `text` on standard output. A reader that has gone away, such as `head`, is no error.
///
/// # Errors
/// When standard output cannot be written, as on a full disk.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

/// The outcome of checks as a table.
#[must_use]
pub fn checks(checks: &[Check]) -> String {
    let mut table = Columns::new(&["CHECK", "RESULT", "FOUND"]);
    for check in checks {
        let verdict = match check.verdict {
            Verdict::Pass => "pass",
            Verdict::Warn => "warning",
            Verdict::Fail => "FAIL",
        };
        table.row([check.name.as_str(), verdict, check.text.as_str()]);
    }
    table.render()
}

/// A table without lines: it can be read, searched and cut into columns.
#[derive(Debug)]
pub struct Columns {
    table: Table,
}

impl Columns {
    /// A table with these headings, or with none.
    #[must_use]
    pub fn new(headings: &[&str]) -> Self {
        let mut table = Table::new();
        table.load_style(NOTHING);
        if !headings.is_empty() {
            table.set_header(headings);
        }
        Self { table }
    }

    /// Adds a row. What would end the line or move the cursor is written out.
    pub fn row<T: AsRef<str>>(&mut self, cells: impl IntoIterator<Item = T>) {
        let cells: Vec<String> = cells.into_iter().map(|cell| one_line(cell.as_ref())).collect();
        self.table.add_row(cells);
    }

    /// Puts the contents of the column with this number, from 0, on its right side.
    pub fn align_right(&mut self, column: usize) {
        if let Some(column) = self.table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }

    /// The table as text, with a line break at its end, or nothing when it has no rows.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        if self.table.row_count() > 0 {
            for line in self.table.lines() {
                text.push_str(line.trim_end());
                text.push('\n');
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_not_padded() {
        let mut columns = Columns::new(&["collection", "delta"]);
        columns.align_right(1);
        columns.row(["shop.orders", "2"]);
        columns.row(["a\u{1b}[2J\n", "-10"]);
        let expected = " collection    delta\n shop.orders       2\n a\\u{1b}[2J\\n    -10\n";
        assert_eq!(columns.render(), expected);
        assert_eq!(Columns::new(&["collection"]).render(), "");
    }
}
