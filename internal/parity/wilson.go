package parity

import "math"

// Rate is a share of a number of messages, with the interval that holds the true share in 19 of 20 cases (Wilson).
type Rate struct {
	N    int64   `json:"n"`
	Of   int64   `json:"of"`
	Rate float64 `json:"rate"` // 0 of none
	Low  float64 `json:"low"`
	High float64 `json:"high"`
}

// rateOf is n of so many.
func rateOf(n, of int64) Rate {
	r := Rate{N: n, Of: of}
	if of > 0 {
		r.Rate = float64(n) / float64(of)
	}
	r.Low, r.High = wilson(n, of)
	return r
}

// wilson is the 95 % interval of n of so many; of none it is everything.
func wilson(n, of int64) (low, high float64) {
	if of <= 0 {
		return 0, 1
	}
	const z = 1.959963984540054
	total, p := float64(of), float64(n)/float64(of)
	middle := p + z*z/(2*total)
	half := z * math.Sqrt(p*(1-p)/total+z*z/(4*total*total))
	scale := 1 + z*z/total
	low, high = max(0, (middle-half)/scale), min(1, (middle+half)/scale)
	if n == 0 {
		low = 0
	}
	if n == of {
		high = 1
	}
	return low, high
}
