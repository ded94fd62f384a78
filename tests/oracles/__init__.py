"""Every formula a second time: NumPy float64, plain loops, written from the papers and not from our
code.
"""
