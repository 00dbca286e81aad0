//! Seconds until a model is ready, and to its first token: `load_speed FOLDER [REPEATS]`.

use danaus_matrix::SeqBatch;
use danaus_model::Model;
use danaus_model::decoder::Compute;
use danaus_tensor::no_grad;
use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let folder = PathBuf::from(args.next().ok_or("usage: load_speed FOLDER [REPEATS]")?);
    let repeats: usize = args.next().map_or(Ok(3), |count| count.parse())?;
    for _ in 0..repeats {
        let start = Instant::now();
        let model = Model::load(&folder, Compute::default())?;
        let ready = start.elapsed();
        no_grad(|| model.decoder.logits(&[1], &SeqBatch::equal(1, 1)?))?;
        let first = start.elapsed();
        println!("ready {:.3} s, first token {:.3} s", ready.as_secs_f64(), first.as_secs_f64());
    }
    Ok(())
}
