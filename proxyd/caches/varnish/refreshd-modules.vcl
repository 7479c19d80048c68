# What refreshd can do better in a Varnish that has varnish-modules (Debian: varnish-modules). Include it *before*
# refreshd.vcl, which it adds to:
#
#     vcl 4.1;
#     include "/etc/varnish/refreshd-modules.vcl";
#     include "/etc/varnish/refreshd.vcl";
#
# - A tag is removed by xkey: at once, from an index, and without a ban.
# - What Varnish is just fetching when a directory, a pattern or a tag is refreshed is given to who waits for it, and
#   not kept: it may have set out before the content changed, and no ban finds it. (Of URLs, a LOOK sees to that.)
#   Where bans come all the time and origins are slow, this costs fetches.

import std;
import var;
import xkey;

sub vcl_recv {
    if (req.method ~ "^(BAN|BANREGEX|BANTAG|DROP)$" &&
        client.ip ~ refreshd_purgers && req.http.X-Forwarded-For !~ ",") {
        var.global_set("refreshd-banned", std.real(time = now));
        if (req.method == "BANTAG") {
            set req.http.x-refreshd-gone = xkey.purge(regsub(req.url, "^/", ""));
            return (synth(299, "Purged"));
        }
    }
}

sub vcl_backend_response {
    # One of the two headers that xkey reads; the other one is left to the origin.
    set beresp.http.X-HashTwo =
        beresp.http.Surrogate-Key + " " + beresp.http.Cache-Tag + " " + beresp.http.xkey;
    if (std.real(var.global_get("refreshd-banned"), 0.0) >= std.real(time = bereq.time)) {
        set beresp.uncacheable = true;
        set beresp.ttl = 1s;
    }
}

sub vcl_backend_error {
    # A canary, see refreshd.vcl.
    if (bereq.http.x-refreshd-canary) {
        set beresp.http.X-HashTwo = bereq.http.x-refreshd-canary;
    }
}

sub vcl_deliver {
    unset resp.http.X-HashTwo;
}
