//! Products against f64.

use super::*;
use crate::model::kernels::linear::{decode_row, linear};

const ROWS: [usize; 8] = [1, 2, 3, 4, 6, 8, 9, 21];

#[test]
fn a_product_is_the_sum_in_f64_but_for_rounding() {
    let mut random_numbers = Random::new(1);
    for level in levels() {
        let mut work = work(2, level);
        for encoding in Encoding::ALL {
            for (rows, cols) in shapes(encoding) {
                let w = random(encoding, rows, cols, &mut random_numbers);
                for n in ROWS {
                    let x = random_numbers.numbers(n * cols);
                    let (want, sizes) = product(&w.view(), &seen(encoding, level, &x, cols));
                    let mut got = vec![f32::NAN; n * rows];
                    linear(&w.view(), &x, &mut got, false, &mut work).unwrap();
                    let what = format!("{level:?} {encoding:?} [{rows}, {cols}] times {n}");
                    assert_close(&what, &got, &want, &sizes);
                }
            }
        }
    }
}

#[test]
fn rounded_activations_cost_little() {
    let mut random_numbers = Random::new(2);
    let mut work = work(2, level());
    let (rows, cols, n) = (64, 2048, 3);
    for encoding in Encoding::ALL {
        let w = random(encoding, rows, cols, &mut random_numbers);
        let x = random_numbers.numbers(n * cols);
        let (want, _) = product(&w.view(), &x);
        let mut got = vec![0.0; n * rows];
        linear(&w.view(), &x, &mut got, false, &mut work).unwrap();
        let error: f64 = got.iter().zip(&want).map(|(g, w)| (f64::from(*g) - w).powi(2)).sum();
        let norm: f64 = want.iter().map(|w| w * w).sum();
        assert!((error / norm).sqrt() < 0.01, "{encoding:?}: {}", (error / norm).sqrt());
    }
}

#[test]
fn a_transposed_matrix_is_read_as_it_lies() {
    let mut random_numbers = Random::new(3);
    for level in levels() {
        let mut work = work(2, level);
        for encoding in [Encoding::F32, Encoding::F16, Encoding::Bf16] {
            for (rows, cols) in [(1, 1), (7, 3), (64, 48), (100, 130), (203, 300)] {
                let bytes = random(encoding, cols, rows, &mut random_numbers);
                let w = Matrix::transposed(encoding, rows, cols, &bytes.data).unwrap();
                let plain = decoded(&bytes.view());
                let mut row = vec![0.0; cols];
                decode_row(&w, rows - 1, &mut row).unwrap();
                let column: Vec<f32> = (0..cols).map(|k| plain[k * rows + rows - 1]).collect();
                assert_eq!(row, column);
                for n in ROWS {
                    let x = random_numbers.numbers(n * cols);
                    let (want, sizes) = product(&w, &x);
                    let mut got = vec![f32::NAN; n * rows];
                    linear(&w, &x, &mut got, false, &mut work).unwrap();
                    let what = format!("{level:?} {encoding:?} [{rows}, {cols}]ᵀ times {n}");
                    assert_close(&what, &got, &want, &sizes);
                }
            }
        }
    }
}

#[test]
fn a_product_is_added_where_that_is_asked_for() {
    let mut random_numbers = Random::new(4);
    let mut work = work(2, level());
    for encoding in Encoding::ALL {
        let (rows, cols) = (20, 768);
        let w = random(encoding, rows, cols, &mut random_numbers);
        for n in [1, 12] {
            let x = random_numbers.numbers(n * cols);
            let before = random_numbers.numbers(n * rows);
            let (mut want, mut sizes) = product(&w.view(), &seen(encoding, level(), &x, cols));
            want.iter_mut().zip(&before).for_each(|(w, b)| *w += f64::from(*b));
            sizes.iter_mut().zip(&before).for_each(|(w, b)| *w += f64::from(b.abs()));
            let mut got = before.clone();
            linear(&w.view(), &x, &mut got, true, &mut work).unwrap();
            assert_close(&format!("{encoding:?} added"), &got, &want, &sizes);
        }
    }
}

#[test]
fn what_is_not_finite_stays_in_its_row() {
    let mut random_numbers = Random::new(5);
    let mut work = work(2, level());
    for encoding in Encoding::ALL {
        let w = random(encoding, 9, 512, &mut random_numbers);
        let clean = random_numbers.numbers(3 * 512);
        let mut want = vec![0.0; 27];
        linear(&w.view(), &clean, &mut want, false, &mut work).unwrap();
        for bad in [f32::NAN, f32::INFINITY] {
            let mut x = clean.clone();
            x[512 + 77] = bad;
            let mut got = vec![0.0; 27];
            linear(&w.view(), &x, &mut got, false, &mut work).unwrap();
            assert!(got[9..18].iter().all(|y| !y.is_finite()), "{encoding:?}");
            assert_eq!((&got[..9], &got[18..]), (&want[..9], &want[18..]), "{encoding:?}");
        }
    }
}

#[test]
fn slices_that_do_not_fit_are_refused() {
    let w = random(Encoding::F32, 4, 6, &mut Random::new(6));
    let mut work = work(1, level());
    let mut out = vec![0.0; 8];
    assert!(linear(&w.view(), &[0.0; 13], &mut out, false, &mut work).is_err());
    assert!(linear(&w.view(), &[0.0; 18], &mut out, false, &mut work).is_err());
    assert!(linear(&w.view(), &[0.0; 12], &mut out, false, &mut work).is_ok());
    assert!(linear(&w.view(), &[], &mut [], false, &mut work).is_ok());
    let lying = Matrix { rows: 5, ..w.view() };
    assert!(linear(&lying, &[0.0; 6], &mut out[..5], false, &mut work).is_err());
    assert!(decode_row(&lying, 4, &mut [0.0; 6]).is_err());
    assert!(decode_row(&w.view(), 4, &mut [0.0; 6]).is_err());
}
