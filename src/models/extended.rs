//! An extended forest and what stands before it: from the values of a row to the numbers that it cuts.
//!
//! Slanted cuts mix columns, so the columns must be of one scale: each is standardised as training had
//! it. After them comes, for every column, what the others do not explain of it, because a metric that
//! leaves the common movement is unusual at a value that is not. A column that was constant in training
//! takes no part: the least movement of it would be an incident, and the forest would see little else.
//!
//! If all are constant there is nothing to cut, and the forest is one leaf: every row is exactly at the
//! threshold and none beyond it. Not taken: refusing such a table. A machine that idles would never have
//! a model, and one idle block would end a cross-validation.

use crate::features;
use crate::features::correlation::Correlation;
use crate::features::scale::{self, Scale};
use crate::forest::{self, ExtendedForest, ExtendedParams, MAX_FEATURES, Table};
use std::num::NonZeroUsize;

/// From the values of a row to the numbers that the forest cuts.
#[derive(Clone, Debug, PartialEq)]
pub struct Coordinates {
    scales: Vec<Scale>,
    columns: Vec<usize>,
    residuals: Option<Residuals>,
}

/// What of each column the others do not explain, on one scale.
#[derive(Clone, Debug, PartialEq)]
pub struct Residuals {
    /// The correlation of the columns that take part.
    pub correlation: Correlation,
    /// Scale of each residual, shape `[n_metrics]` of the correlation.
    pub scales: Vec<Scale>,
}

impl Coordinates {
    /// Coordinates from a file: scale of each column, shape `[n_features]`, which columns take part,
    /// ascending, and their residuals.
    ///
    /// # Errors
    /// [`features::Error::Part`] if no column takes part, the columns are not ascending or not below the
    /// number of scales, or there is not one residual with one scale for each of them.
    pub fn new(
        scales: Vec<Scale>,
        columns: Vec<usize>,
        residuals: Option<Residuals>,
    ) -> Result<Self, features::Error> {
        let fault = |part, value: usize, limit: String| {
            Err(features::Error::Part { part, value: value.to_string(), limit })
        };
        let Some(&last) = columns.last() else {
            return fault("number of columns", 0, "at least 1".into());
        };
        if let Some(pair) = columns.windows(2).find(|pair| pair[0] >= pair[1]) {
            return fault("column", pair[1], format!("above {}, the one before", pair[0]));
        }
        if last >= scales.len() {
            return fault("column", last, format!("below {}, the number of scales", scales.len()));
        }
        if let Some(Residuals { correlation, scales }) = &residuals {
            for (part, length) in
                [("number of metrics", correlation.n_metrics()), ("number of residual scales", scales.len())]
            {
                if length != columns.len() {
                    return fault(part, length, format!("{}, the number of columns", columns.len()));
                }
            }
        }
        Ok(Self { scales, columns, residuals })
    }

    /// Learns from a table of finite values with at least one row.
    fn fit(table: &Table) -> Result<Self, forest::Error> {
        let (n_rows, n_features) = (table.n_rows(), table.n_features());
        if n_rows == 0 || n_features == 0 {
            return Err(forest::Error::Empty { n_rows, n_features });
        }
        table.check_finite()?;
        let mut columns: Vec<usize> =
            (0..n_features).filter(|column| varies(table.column(*column))).collect();
        if columns.len() > MAX_VARYING {
            let (name, value) = ("number of columns that vary", columns.len());
            let limit = format!("at most {MAX_VARYING}");
            return Err(forest::Error::Unsuitable { name, value, n_rows, n_features, limit });
        }
        let floor = |column| scale::floor(table.column(column)).expect("finite values");
        let fit = |column| Scale::fit(table.column(column), floor(column)).expect("finite values");
        let scales = (0..n_features).map(fit).collect();
        let floors: Vec<f64> = columns.iter().map(|column| floor(*column)).collect();
        let varying: Vec<&[f32]> = columns.iter().map(|column| table.column(*column)).collect();
        let correlation = Correlation::fit(&varying, &floors).expect("finite values in few columns");
        let residuals = correlation.map(|correlation| Residuals::fit(correlation, &varying, &floors));
        if columns.is_empty() {
            columns = (0..n_features).collect();
        }
        Ok(Self { scales, columns, residuals })
    }

    /// Number of values of a row.
    pub fn n_features(&self) -> usize {
        self.scales.len()
    }

    /// Number of values that the forest cuts.
    pub fn width(&self) -> usize {
        self.columns.len() + self.residuals.as_ref().map_or(0, |residuals| residuals.scales.len())
    }

    /// Scale of each column, shape `[n_features]`.
    pub fn scales(&self) -> &[Scale] {
        &self.scales
    }

    /// The columns that take part, ascending: those that varied in training, or all if none did.
    pub fn columns(&self) -> &[usize] {
        &self.columns
    }

    /// The residuals; none below two columns that vary.
    pub fn residuals(&self) -> Option<&Residuals> {
        self.residuals.as_ref()
    }

    /// The standardised columns and then the standardised residuals of a row, shape
    /// [`[width]`](Self::width).
    ///
    /// # Panics
    /// If there is not one value per column.
    pub fn apply(&self, row: &[f32]) -> Vec<f32> {
        assert_eq!(row.len(), self.n_features(), "a row has as many values as there are scales");
        let mut out = Vec::with_capacity(self.width());
        out.extend(self.columns.iter().map(|&column| self.scales[column].apply(row[column])));
        if let Some(Residuals { correlation, scales }) = &self.residuals {
            let values: Vec<f32> = self.columns.iter().map(|column| row[*column]).collect();
            let residuals = correlation.apply(&values);
            out.extend(scales.iter().zip(residuals).map(|(scale, residual)| scale.apply(residual)));
        }
        out
    }
}

/// Most columns that vary: the forest sees each twice.
const MAX_VARYING: usize = MAX_FEATURES / 2;

fn varies(column: &[f32]) -> bool {
    column.iter().any(|value| *value != column[0])
}

impl Residuals {
    /// Learns the scales of the residuals from the columns of the correlation and their floors.
    ///
    /// # Panics
    /// If the columns are not those of the correlation, or not finite.
    pub fn fit(correlation: Correlation, columns: &[&[f32]], floors: &[f64]) -> Self {
        let n_rows = columns[0].len();
        let mut residuals = vec![Vec::with_capacity(n_rows); columns.len()];
        let mut values = vec![0.0; columns.len()];
        for row in 0..n_rows {
            for (value, column) in values.iter_mut().zip(columns) {
                *value = column[row];
            }
            for (column, residual) in residuals.iter_mut().zip(correlation.apply(&values)) {
                column.push(residual);
            }
        }
        let fit = |(column, floor): (&Vec<f32>, &f64)| Scale::fit(column, *floor).expect("finite residuals");
        let scales = residuals.iter().zip(floors).map(fit).collect();
        Self { correlation, scales }
    }
}

/// A fitted extended forest and its coordinates.
#[derive(Clone, Debug, PartialEq)]
pub struct Extended {
    coordinates: Coordinates,
    forest: ExtendedForest,
}

impl Extended {
    /// The score below which a row is anomalous: half the range.
    pub const OFFSET: f64 = -0.5;

    /// Grows a forest on a table of values as they are. The result does not depend on the number of
    /// threads.
    ///
    /// # Errors
    /// The forest's own; [`forest::Error::Unsuitable`] if more than half of
    /// [`MAX_FEATURES`] columns vary.
    pub fn fit(params: &ExtendedParams, table: &Table, threads: NonZeroUsize) -> Result<Self, forest::Error> {
        let coordinates = Coordinates::fit(table)?;
        let (n_rows, width) = (table.n_rows(), coordinates.width());
        let mut values = vec![0.0; n_rows * width];
        let mut row = vec![0.0; table.n_features()];
        for number in 0..n_rows {
            table.copy_row(number, &mut row);
            for (column, value) in coordinates.apply(&row).into_iter().enumerate() {
                values[column * n_rows + number] = value;
            }
        }
        let table = Table::new(&values, n_rows, width)?;
        // Leaves alone are all alike, and the mean of many is off by the last bits: beyond the threshold.
        let nothing_varies = !(0..width).any(|column| varies(table.column(column)));
        let n_estimators = if nothing_varies { NonZeroUsize::MIN } else { params.n_estimators };
        let forest = ExtendedParams { n_estimators, ..params.clone() }.fit(&table, threads)?;
        Ok(Self { coordinates, forest })
    }

    /// A forest from a file.
    ///
    /// # Errors
    /// [`features::Error::Part`] if the forest has another width than the coordinates.
    pub fn new(coordinates: Coordinates, forest: ExtendedForest) -> Result<Self, features::Error> {
        let (width, expected) = (forest.n_features(), coordinates.width());
        if width != expected {
            return Err(features::Error::Part {
                part: "width of the forest",
                value: width.to_string(),
                limit: format!("{expected}, the number of columns and residuals"),
            });
        }
        Ok(Self { coordinates, forest })
    }

    /// What stands before the forest.
    pub fn coordinates(&self) -> &Coordinates {
        &self.coordinates
    }

    /// The forest on standardised values.
    pub fn forest(&self) -> &ExtendedForest {
        &self.forest
    }

    /// Minus the anomaly score of a row of values as they are: in [-1, 0), lower is more anomalous. NaN
    /// counts as usual, an infinity as the greatest finite value in its own column and as usual in what the
    /// others explain.
    ///
    /// # Panics
    /// If the row has another width than the model.
    pub fn score_samples(&self, row: &[f32]) -> f64 {
        self.forest.score_samples(&self.coordinates.apply(row))
    }

    /// [`score_samples`](Self::score_samples) of every row, into `out`, shape `[n_rows]`.
    ///
    /// # Panics
    /// If the table has another width than the model, or `out` not one place per row.
    pub fn score_table(&self, table: &Table, out: &mut [f64]) {
        assert_eq!(out.len(), table.n_rows(), "one score per row");
        let mut row = vec![0.0; self.coordinates.n_features()];
        for (number, score) in out.iter_mut().enumerate() {
            table.copy_row(number, &mut row);
            *score = self.score_samples(&row);
        }
    }
}

#[cfg(test)]
mod tests;
