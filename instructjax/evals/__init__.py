"""The paper's evaluations (Ouyang et al. 2022, sections 3.6 and 4, Appendices D and E):
`instructjax eval`.
"""
