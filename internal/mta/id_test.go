package mta

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestIDsSortByTimeInBothForms(t *testing.T) {
	start := time.UnixMilli(1_700_000_000_000)
	var ids, texts []string
	for i := range 100 {
		at := start.Add(time.Duration(i) * time.Millisecond)
		id := NewID(at)
		if !id.Time().Equal(at) {
			t.Fatalf("made at %v, says %v", at, id.Time())
		}
		ids, texts = append(ids, string(id[:])), append(texts, id.String())
	}
	if !slices.IsSorted(ids) || !slices.IsSorted(texts) {
		t.Error("an older id sorts after a newer one")
	}
}

func TestAnIDIsAUUIDv7(t *testing.T) {
	id := NewID(time.Now())
	if id[6]>>4 != 7 || id[8]>>6 != 2 {
		t.Errorf("%x has version %d and variant %b", id, id[6]>>4, id[8]>>6)
	}
	if id.IsZero() || !(ID{}).IsZero() {
		t.Error("IsZero is wrong")
	}
}

// An ID has exactly one text.
func FuzzParseID(f *testing.F) {
	f.Add(NewID(time.UnixMilli(1_700_000_000_000)).String())
	f.Add(strings.Repeat("0", 26))
	f.Add(strings.Repeat("v", 26))
	f.Add(strings.Repeat("0", 25) + "1")
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParseID(s)
		if err != nil {
			if !id.IsZero() {
				t.Errorf("%v comes with an error", id)
			}
			return
		}
		if id.String() != s {
			t.Errorf("%q is written %q", s, id)
		}
		var back ID
		if text, err := id.MarshalText(); err != nil || back.UnmarshalText(text) != nil || back != id {
			t.Errorf("%q is read back as %v", s, back)
		}
	})
}
