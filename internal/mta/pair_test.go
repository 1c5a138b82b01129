package mta

import "testing"

func TestWhatAPrimarysReplySaysOfTheMail(t *testing.T) {
	tests := []struct {
		reply  Reply
		atRcpt bool
		want   Fate
	}{
		{Reply{Code: 250}, false, Taken},
		{Reply{Code: 450, Enhanced: "4.2.0"}, true, PutOff},
		{Reply{}, false, PutOff}, // no reply
		{Reply{Code: 550, Enhanced: "5.1.1"}, true, RefusedRcpt},
		{Reply{Code: 550, Enhanced: "5.1.1"}, false, RefusedRcpt},
		{Reply{Code: 552, Enhanced: "5.2.2"}, false, RefusedRcpt},
		{Reply{Code: 550, Enhanced: "5.1.8"}, true, RefusedContent}, // the sender's domain
		{Reply{Code: 550, Enhanced: "5.1.0"}, true, RefusedRcpt},
		{Reply{Code: 550, Enhanced: "5.1.0"}, false, RefusedContent},
		{Reply{Code: 554, Enhanced: "5.7.1"}, true, RefusedContent}, // the client is listed
		{Reply{Code: 554, Enhanced: "5.7.1"}, false, RefusedContent},
		{Reply{Code: 550}, true, RefusedRcpt},
		{Reply{Code: 554}, true, RefusedContent},
		{Reply{Code: 550}, false, RefusedContent},
	}
	for _, tt := range tests {
		if got := FateOf(tt.reply, tt.atRcpt); got != tt.want {
			t.Errorf("%v, at RCPT %v: got %v, want %v", tt.reply, tt.atRcpt, got, tt.want)
		}
	}
}

func TestFatesAndKindsOfPairsKeepTheirNames(t *testing.T) {
	for f := Taken; f <= PutOff; f++ {
		text, err := f.MarshalText()
		var back Fate
		if err != nil || back.UnmarshalText(text) != nil || back != f {
			t.Errorf("%v is read back as %v", f, back)
		}
	}
	for k := PairShadow; k <= PairHindsight; k++ {
		text, err := k.MarshalText()
		var back PairKind
		if err != nil || back.UnmarshalText(text) != nil || back != k {
			t.Errorf("%v is read back as %v", k, back)
		}
	}
	var f Fate
	var k PairKind
	if f.UnmarshalText([]byte("lost")) == nil || k.UnmarshalText([]byte("lost")) == nil {
		t.Error("an unknown name was read")
	}
}
