package mta

import "testing"

func TestBoundsRefuseWhatAPrimaryCannotTake(t *testing.T) {
	small := Bounds{Known: true, Size: 100}
	able := Bounds{Known: true, SMTPUTF8: true, RequireTLS: true}
	tests := []struct {
		name string
		b    Bounds
		size int64
		p    Params
		want string
	}{
		{"nothing is known", Bounds{}, 1 << 40, Params{SMTPUTF8: true, RequireTLS: true}, ""},
		{"no stated limit", able, 1 << 40, Params{}, ""},
		{"exactly the limit", small, 100, Params{}, ""},
		{"above the limit", small, 101, Params{}, "5.3.4"},
		{"the size is not known yet", small, 0, Params{}, ""},
		{"SMTPUTF8", small, 1, Params{SMTPUTF8: true}, "5.6.7"},
		{"REQUIRETLS", small, 1, Params{RequireTLS: true}, "5.7.30"},
		{"it can do both", able, 1, Params{SMTPUTF8: true, RequireTLS: true}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := tt.b.Check(tt.size, tt.p)
			if got := enhanced(r); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func enhanced(r *Reply) string {
	if r == nil {
		return ""
	}
	return r.Enhanced
}
