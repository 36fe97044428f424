//! Law 4: a row's result does not depend on N, on the threads, or on addresses.

use super::*;
use crate::model::kernels::linear::linear;

/// Results of `x` when it is cut into pieces of `n` rows.
fn in_pieces(w: &Matrix<'_>, x: &[f32], n: usize, work: &mut Work) -> Vec<u32> {
    let mut out = vec![f32::NAN; x.len() / w.cols * w.rows];
    for (x, out) in x.chunks(n * w.cols).zip(out.chunks_mut(n * w.rows)) {
        linear(w, x, out, false, work).unwrap();
    }
    bits(&out)
}

#[test]
fn a_row_does_not_depend_on_its_company() {
    let mut random_numbers = Random::new(7);
    for level in levels() {
        let (mut one, mut three) = (work(1, level), work(3, level));
        for encoding in Encoding::ALL {
            for (rows, cols) in shapes(encoding) {
                let w = random(encoding, rows, cols, &mut random_numbers);
                let x = random_numbers.numbers(37 * cols);
                let want = in_pieces(&w.view(), &x, 1, &mut one);
                for n in [2, 3, 4, 5, 8, 9, 16, 37] {
                    let what = format!("{level:?} {encoding:?} [{rows}, {cols}] by {n}");
                    assert_eq!(in_pieces(&w.view(), &x, n, &mut one), want, "{what}");
                    assert_eq!(in_pieces(&w.view(), &x, n, &mut three), want, "{what}, 3 threads");
                }
            }
        }
    }
}

#[test]
fn a_row_among_very_many_is_the_same() {
    let mut random_numbers = Random::new(10);
    for level in levels() {
        let mut work = work(2, level);
        for encoding in Encoding::ALL {
            let w = random(encoding, 21, 2304, &mut random_numbers);
            let x = random_numbers.numbers(150 * 2304);
            let want = in_pieces(&w.view(), &x, 1, &mut work);
            for n in [11, 25, 100, 150] {
                assert_eq!(in_pieces(&w.view(), &x, n, &mut work), want, "{level:?} {encoding:?}");
            }
        }
    }
}

#[test]
fn a_row_of_a_transposed_matrix_does_not_depend_on_its_company() {
    let mut random_numbers = Random::new(8);
    for level in levels() {
        let (mut one, mut three) = (work(1, level), work(3, level));
        for encoding in [Encoding::F32, Encoding::F16, Encoding::Bf16] {
            let (rows, cols) = (331, 270);
            let bytes = random(encoding, cols, rows, &mut random_numbers);
            let w = Matrix::transposed(encoding, rows, cols, &bytes.data).unwrap();
            let x = random_numbers.numbers(37 * cols);
            let want = in_pieces(&w, &x, 1, &mut one);
            for n in [2, 3, 4, 5, 8, 9, 37] {
                assert_eq!(in_pieces(&w, &x, n, &mut one), want, "{level:?} {encoding:?} by {n}");
                assert_eq!(in_pieces(&w, &x, n, &mut three), want, "{level:?} {encoding:?} by {n}");
            }
        }
    }
}

#[test]
fn a_result_does_not_depend_on_addresses() {
    let mut random_numbers = Random::new(9);
    let mut work = work(2, level());
    for encoding in Encoding::ALL {
        let w = random(encoding, 21, 1280, &mut random_numbers);
        let x = random_numbers.numbers(2 * 1280);
        let want = in_pieces(&w.view(), &x, 2, &mut work);
        for offset in [1, 2, 17, 63] {
            let moved = |bytes: &[u8]| [vec![0xff; offset], bytes.to_vec()].concat();
            let (data, scales) = (moved(&w.data), moved(&w.scales));
            let view = Matrix { data: &data[offset..], scales: &scales[offset..], ..w.view() };
            assert_eq!(in_pieces(&view, &x, 2, &mut work), want, "{encoding:?} at {offset}");
        }
    }
}
