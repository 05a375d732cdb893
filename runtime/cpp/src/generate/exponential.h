// exp of numbers up to 0, with the same bits on every machine and in Python (runtime/exponential.py).
#pragma once

namespace q2export::runtime
{

double exponential(double x);

} // namespace q2export::runtime
