STANDARD = "Answer the question based on the context.\nQuestion: {question}\nContext: {context}\nAnswer:"
COT = "Answer the question based on the context.\nQuestion: {question}\nContext: {context}\nLet's think step by step."
TWO_STAGE = COT + " {reasoning}\nTherefore, the answer is"
RATIONALE = (
    "Based on the context, generate reasoning step by step to answer the question. "
    "Question: {question} Context: {context} Reasoning:"
)
GUIDED = (
    "Answer the question based on the context and the reasoning.\n"
    "Question: {question}\nContext: {context}\nReasoning: {rationale}\nAnswer:"
)
CONCLUSION = "So the answer is {answer}."
