"""The command line: arguments in, sentences out; no arithmetic. One file a command; nothing heavy is imported to say --help.

main.py       `espalier COMMAND`: finds the command, turns errors into one sentence and an exit code
parser.py     argparse whose errors are that sentence
fit.py        fit, resume
evaluate.py   evaluate
report.py     report
compare.py    compare
certify.py    certify, verify
export.py     export
predict.py    predict
theory.py     theory
shelves.py    models, inferences, data
progress.py   bars: the loss, the density, the time left
tables.py     scores with their intervals, as text
"""
