//! Decoding against the `gguf` package, transformers and torch (tests/fixtures/encodings).

use super::*;
use crate::model::kernels::linear::decode_row;
use safetensors::SafeTensors;

const GOLDEN: &[u8] = include_bytes!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/fixtures/encodings/encodings.safetensors"
));

#[test]
fn every_published_encoding_means_what_its_authors_packages_say() {
    let golden = SafeTensors::deserialize(GOLDEN).unwrap();
    let published = Encoding::ALL
        .iter()
        .filter(|e| !matches!(e, Encoding::F32 | Encoding::Int8 | Encoding::Int4 { .. }));
    for &encoding in published {
        let tensor = |part: &str| golden.tensor(&format!("{}.{part}", encoding.name()));
        let values = tensor("values").unwrap();
        let (rows, cols) = (values.shape()[0], values.shape()[1]);
        let (data, scales) = (tensor("data").unwrap(), tensor("scales").ok());
        let scales = scales.as_ref().map_or(&[][..], |s| s.data());
        let w = Matrix::with_scales(encoding, rows, cols, data.data(), scales).unwrap();
        let mut row = vec![0.0; cols];
        for (m, want) in values.data().chunks(cols * 4).enumerate() {
            decode_row(&w, m, &mut row).unwrap();
            for (k, (got, want)) in row.iter().zip(want.as_chunks::<4>().0).enumerate() {
                let want = f32::from_le_bytes(*want);
                assert_eq!(*got, want, "{encoding:?} row {m} column {k}");
            }
        }
    }
}

#[test]
fn special_values_are_kept() {
    let scale = 1.0f32.to_le_bytes();
    let w = Matrix::with_scales(Encoding::Fp8, 1, 3, &[0x7f, 0xff, 0x80], &scale).unwrap();
    let row = decoded(&w);
    assert!(row[0].is_nan() && row[1].is_nan());
    assert_eq!(row[2].to_bits(), (-0.0f32).to_bits());
    let w = |e: u8| {
        decoded(&Matrix::with_scales(Encoding::Mxfp4, 1, 32, &[0x22; 16], &[e]).unwrap())[0]
    };
    // e2m1's code 2 is one, so the element is the scale.
    assert_eq!([0, 1, 2, 127, 254].map(w), [-127, -126, -125, 0, 127].map(|e| 2.0f32.powi(e)));
    assert!(w(255).is_nan());
}

#[test]
fn bytes_that_do_not_fit_are_refused() {
    for encoding in Encoding::ALL {
        let (rows, cols) = (3, 256);
        let bytes = encoding.data_bytes(rows, cols).unwrap();
        let scales = vec![0; encoding.scale_bytes(rows, cols)];
        let data = vec![0; bytes + 1];
        assert!(Matrix::with_scales(encoding, rows, cols, &data[..bytes], &scales).is_ok());
        assert!(Matrix::with_scales(encoding, rows, cols, &data, &scales).is_err());
        assert!(Matrix::with_scales(encoding, rows, cols, &data[..bytes - 1], &scales).is_err());
        let other = vec![0; scales.len() + 1];
        assert!(Matrix::with_scales(encoding, rows, cols, &data[..bytes], &other).is_err());
        assert_eq!(
            Matrix::transposed(encoding, rows, cols, &data[..bytes]).is_ok(),
            encoding.is_float()
        );
        assert!(encoding.data_bytes(usize::MAX, 1 << 20).is_err());
    }
    assert!(Encoding::Q4K.row_bytes(128).is_err());
    assert!(Encoding::Int4 { group: 48 }.row_bytes(128).is_err());
}
