# What refreshd's agent (proxyd) needs in a Varnish, 7.1 or later: PURGE one URL; BAN a directory, a pattern, a tag;
# DROP everything; LOOK whether something is there.
#
# Copy this file to /etc/varnish/ and include it right after the `vcl 4.1;` line of your VCL:
#
#     vcl 4.1;
#     import std;
#     include "/etc/varnish/refreshd.vcl";
#
# (drop your own `import std;` or keep it: importing twice is allowed). Nothing else is needed;
# your own subroutines of the same names run after these. If your vcl_recv rewrites req.url or the
# Host, put that part of it before the include, so that a purge is rewritten just like a request.
#
#     PURGE /a/b?c HTTP/1.1      removes all variants of this URL; 200 whether or not it was there
#     BAN /a/ HTTP/1.1           removes all that begins with /a/ on this Host; 200
#     BANREGEX /a/.*[.]png HTTP/1.1   removes all whose whole path with query this matches, on this Host; 299
#     BANTAG /news HTTP/1.1      removes all that the origin gave the tag `news`, of every Host; 299
#     DROP / HTTP/1.1            removes all that is there, of every Host; 299. An agent asks for it only if
#                                its drop_after_s is set
#     SOFTPURGE /a/b?c HTTP/1.1  all variants of this URL are out of date; they are served for as long as grace
#                                lasts while they are fetched anew; 299
#     LOOK /a/b?c HTTP/1.1       whether a copy is there, and since when; nothing is fetched; 299. While one is being
#                                fetched, it waits for that
#     SIZE /a/b?c HTTP/1.1       how long the object is, in X-Refreshd-Size; where it is not there, the origin is
#                                asked by a HEAD, and nothing is kept
#     CANARY /a/x HTTP/1.1       puts an empty object there for a minute, with the tags of X-Refreshd-Tags; 299. An
#                                agent that is to verify a ban looks whether it took such a one along
#
# Each answer has in X-Refreshd-Now when the request came, by this Varnish's clock.
#
# docs/agent.md says more.

import purge;
import std;

# Who may purge: add the address the agent connects from, unless it runs on this machine.
acl refreshd_purgers {
    "127.0.0.1";
    "::1";
}

sub vcl_recv {
    unset req.http.x-refreshd-canary;
    unset req.http.x-refreshd-size;
    if (req.method ~ "^(PURGE|SOFTPURGE|BAN|BANREGEX|BANTAG|DROP|LOOK|SIZE|CANARY)$") {
        # A comma in X-Forwarded-For (Varnish has added client.ip by now): another proxy passed this on,
        # a TLS terminator on this machine for example. Then client.ip says nothing about who asks.
        if (client.ip !~ refreshd_purgers || req.http.X-Forwarded-For ~ ",") {
            return (synth(403, "Not a purger"));
        }
        if (req.method == "DROP") {
            # What is fetched from now on is newer than the ban, and stays.
            if (std.ban("obj.status != 0")) {
                return (synth(299, "Dropped"));
            }
            return (synth(500, "Ban refused: " + std.ban_error()));
        }
        # As the builtin VCL does it for every other request: host names have no case.
        set req.http.Host = req.http.Host.lower();
        if (req.http.Host !~ "^[a-z0-9._:\[\]-]+$" || req.url !~ "^/[!-~]*$") {
            return (synth(400, "Bad host or path"));
        }
        if (req.method == "PURGE") {
            return (purge);
        }
        if (req.method == "LOOK" || req.method == "SIZE" || req.method == "SOFTPURGE") {
            return (hash);
        }
        if (req.method == "CANARY") {
            set req.http.x-refreshd-canary = " " + req.http.X-Refreshd-Tags + " ";
            set req.method = "GET";
            return (hash);
        }
        if (req.method == "BANTAG") {
            # As below: a backslash before every byte that could mean something. \x20 is a space.
            if (std.ban("obj.http.x-refreshd-tags ~ (?:^|[\x20,])" +
                        regsuball(regsub(req.url, "^/", ""), "([^A-Za-z0-9/_-])", "\\\1") + "(?:$|[\x20,])")) {
                return (synth(299, "Banned"));
            }
            return (synth(500, "Ban refused: " + std.ban_error()));
        }
        if (req.method == "BANREGEX") {
            # Without white space it is one word of the expression. The agent has compiled it by itself,
            # so it cannot end the group that it stands in.
            if (std.ban("obj.http.x-refreshd-host == " + req.http.Host +
                        " && obj.http.x-refreshd-url ~ ^(?:" + req.url + ")$")) {
                return (synth(299, "Banned"));
            }
            return (synth(500, "Ban refused: " + std.ban_error()));
        }
        # No expression can be broken out of: std.ban parts its words by white space alone, which neither the
        # host nor the URL can hold (checked above); the host is compared as a literal; and in the
        # pattern every byte that could mean something has a backslash before it.
        # Only obj.* is asked, so that the ban lurker can work such a ban off in the background.
        if (std.ban("obj.http.x-refreshd-host == " + req.http.Host +
                    " && obj.http.x-refreshd-url ~ ^" + regsuball(req.url, "([^A-Za-z0-9/_-])", "\\\1"))) {
            return (synth(200, "Banned"));
        }
        return (synth(500, "Ban refused: " + std.ban_error()));
    }
}

sub vcl_hit {
    if (req.method == "SOFTPURGE") {
        set req.http.x-refreshd-softened = purge.soft();
        return (synth(299, "Softened"));
    }
    if (req.method == "LOOK") {
        set req.http.x-refreshd-begun = obj.http.x-refreshd-begun;
        set req.http.x-refreshd-ttl = obj.ttl;
        return (synth(299, "There"));
    }
    if (req.method == "SIZE") {
        set req.http.x-refreshd-size = obj.http.Content-Length;
        return (synth(299, "There"));
    }
}

sub vcl_miss {
    if (req.method == "SOFTPURGE") {
        # Another variant may be there.
        set req.http.x-refreshd-softened = purge.soft();
        return (synth(299, "Softened"));
    }
    if (req.method == "LOOK") {
        return (synth(299, "Gone"));
    }
    if (req.method == "SIZE") {
        return (pass);
    }
}

sub vcl_pass {
    if (req.method == "SIZE") {
        set req.method = "HEAD";
        set req.http.x-refreshd-size = "asked";
    }
    if (req.method == "SOFTPURGE" || req.method == "LOOK") {
        # What is known of it is that it is not kept.
        return (synth(299, "Gone"));
    }
}

sub vcl_synth {
    if (req.method ~ "^(PURGE|SOFTPURGE|BAN|BANREGEX|BANTAG|DROP|LOOK|SIZE)$") {
        set resp.http.X-Refreshd-Now = std.real(time = req.time);
        if (req.method == "LOOK") {
            set resp.http.X-Refreshd-Look = resp.reason;
            set resp.http.X-Refreshd-Begun = req.http.x-refreshd-begun;
            set resp.http.X-Refreshd-Ttl = req.http.x-refreshd-ttl;
        }
        if (req.method == "SIZE") {
            set resp.http.X-Refreshd-Size = req.http.x-refreshd-size;
        }
        set resp.body = "";
        return (deliver);
    }
}

sub vcl_backend_fetch {
    if (bereq.http.x-refreshd-canary) {
        return (error(299, "Canary"));
    }
}

sub vcl_backend_error {
    if (bereq.http.x-refreshd-canary) {
        # No origin was asked: it is as if it had come from there.
        set beresp.http.x-refreshd-host = bereq.http.Host;
        set beresp.http.x-refreshd-url = bereq.url;
        set beresp.http.x-refreshd-tags = bereq.http.x-refreshd-canary;
        set beresp.ttl = 60s;
        set beresp.grace = 0s;
        set beresp.keep = 0s;
        set beresp.body = "";
        return (deliver);
    }
}

sub vcl_backend_response {
    if (bereq.http.x-refreshd-size) {
        # Varnish itself would say 0, for nothing follows.
        set beresp.http.X-Refreshd-Size = beresp.http.Content-Length;
    }
    # What bans are compared with. Objects stored before this file was included have no such
    # headers, and no directory refresh finds them.
    set beresp.http.x-refreshd-host = bereq.http.Host;
    set beresp.http.x-refreshd-url = bereq.url;
    # What a LOOK tells: whether it was asked for before a purge, whenever it came.
    set beresp.http.x-refreshd-begun = std.real(time = bereq.time);
    # The headers that origins name tags in: with spaces or commas between them.
    set beresp.http.x-refreshd-tags =
        beresp.http.Surrogate-Key + " " + beresp.http.Cache-Tag + " " + beresp.http.xkey;
}

sub vcl_deliver {
    unset resp.http.x-refreshd-host;
    unset resp.http.x-refreshd-url;
    unset resp.http.x-refreshd-tags;
    unset resp.http.x-refreshd-begun;
}
