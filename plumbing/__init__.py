"""What every program needs and no reader of the method: nothing here knows a prompt, a reward, a metric or a model.

errors      UserError: a mistake that the user can correct, in one sentence
files       JSON and JSON lines; a file is replaced as a whole or not at all
run         Run: the folder of one run, which goes on where it stopped
command     a dataclass as the command line of a script, and how a script ends
processes   what the processes of torchrun share and put together; the device to compute on
server      ServedLM: a language model behind an OpenAI-compatible server
answers     what a model's text states as its answer, and the reasoning before it
markup      what stands around a model's words: thoughts, end tokens, boxes, bold type; accents; sentences
hub         model files: found in a folder or on the Hugging Face hub, read, written
downloads   the official files of the data sets
records     records of data files, each with its place, and their faults in one sentence
"""
