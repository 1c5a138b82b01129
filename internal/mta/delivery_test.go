package mta

import (
	"slices"
	"testing"
)

func TestOutcomesKeepTheirNames(t *testing.T) {
	for o, ended := range map[Outcome]bool{Deferred: false, Delivered: true, Quarantined: false, Returned: true, Dropped: true} {
		text, err := o.MarshalText()
		var back Outcome
		if err != nil || back.UnmarshalText(text) != nil || back != o {
			t.Errorf("%v is read back as %v", o, back)
		}
		if o.Ended() != ended {
			t.Errorf("%v has ended: %v", o, o.Ended())
		}
	}
	var o Outcome
	if o.UnmarshalText([]byte("lost")) == nil {
		t.Error("an unknown outcome was read")
	}
}

func TestDestsAreEachNamedOnceInOrder(t *testing.T) {
	e := Envelope{Rcpts: []Recipient{{Dest: "b"}, {Dest: "a"}, {Dest: "b"}}}
	if got := e.Dests(); !slices.Equal(got, []string{"b", "a"}) {
		t.Errorf("got %q", got)
	}
}
