//! Bad input ends in a message that names what is wrong, and leaves no thread behind.

use crate::common::{generate, options, prompts};
use semoe::base::ErrorKind;
use semoe::base::units::Bytes;
use semoe::infer::generator::Generator;
use semoe::infer::options::Options;
use semoe::infer::sampler::Sampling;
use semoe::storage::disk::faulty::Fault;

#[test]
fn prompts_that_do_not_fit_are_refused() {
    let short = Options { context: 16, ..options("olmoe", None, 1) };
    let refusal =
        |prompt: Vec<u32>, most| generate(&short, &[prompt], Sampling::greedy(), most).unwrap_err();
    let long = refusal(vec![3; 17], 1);
    assert_eq!(long.kind(), ErrorKind::Input);
    assert!(long.to_string().contains("context=16"), "{long}");
    assert!(refusal(vec![], 1).to_string().contains("no tokens"));
    assert!(refusal(vec![1 << 20], 1).to_string().contains("does not know"));
    // A text that reaches the end of the context ends there.
    let (texts, _) = generate(&short, &[vec![3; 10]], Sampling::greedy(), 100).unwrap();
    assert_eq!(texts[0].len(), 6);
    let wide = Options { context: 1 << 30, ..options("olmoe", None, 1) };
    assert_eq!(Generator::open(&wide).err().unwrap().kind(), ErrorKind::Config);
}

#[test]
fn a_budget_that_is_too_small_names_the_smallest_that_works() {
    let with = |memory| Options { memory: Some(memory), ..options("mixtral", None, 1) };
    let refused = Generator::open(&with(Bytes(1 << 20))).err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::Budget);
    let text = refused.to_string();
    let figure = text.split("smallest=").nth(1).unwrap().trim_end_matches(')');
    // The process grows while tests run beside this one, and the figure counts the process.
    let smallest = Bytes(figure.parse::<Bytes>().unwrap().0 + (64 << 20));
    Generator::open(&with(smallest)).unwrap().finish().unwrap();
}

#[test]
fn a_disk_that_fails_a_read_ends_the_run_with_file_and_block() {
    let few = options("olmoe", Some(2), 1);
    let mut generator = Generator::open_on(&few, |disk| {
        disk.failing(Box::new(|nth, _| (nth == 5).then_some(Fault::Broken)))
    })
    .unwrap();
    let job = generator.job(prompts(1).remove(0), Sampling::greedy(), 30);
    let error = generator.run(vec![job], |_| Ok(())).unwrap_err();
    let text = error.to_string();
    assert_eq!(error.kind(), ErrorKind::Io, "{text}");
    assert!(text.contains("model.safetensors") && text.contains("expert"), "{text}");
}

#[test]
fn what_a_listener_refuses_ends_its_jobs_and_nothing_else() {
    let mut generator = Generator::open(&options("olmoe", Some(4), 2)).unwrap();
    let job = generator.job(prompts(1).remove(0), Sampling::greedy(), 1000);
    let refused = generator.run(vec![job], |_| Err(semoe::base::Error::input("enough")));
    assert_eq!(refused.unwrap_err().message(), "enough");
    let mut told = 0;
    let job = generator.job(prompts(1).remove(0), Sampling::greedy(), 3);
    generator
        .run(vec![job], |_| {
            told += 1;
            Ok(())
        })
        .unwrap();
    assert!(told >= 1);
    generator.finish().unwrap();
}
