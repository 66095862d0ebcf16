// A random mask of a filter bank with the tables that the kernels read, and its plain loops.
#pragma once
#include <algorithm>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "cuda/device.h"
#include "cuda/sparse_conv2d.h"

namespace check {

class Mask {
 public:
  // Sets s.nnz.
  Mask(sk::SparseConv2dShape& s, double density) {
    std::mt19937 random(7);
    std::uniform_real_distribution<double> uniform(0, 1);
    const int64_t codes = s.IB() * s.TB();
    std::vector<int32_t> indptr{0}, index, row;
    for (int64_t ob = 0; ob < s.OB(); ++ob) {
      for (int64_t code = 0; code < codes; ++code)
        if (uniform(random) < density) index.push_back(int32_t(code)), row.push_back(int32_t(ob));
      indptr.push_back(int32_t(index.size()));
    }
    s.nnz = int64_t(index.size());
    std::vector<int32_t> place(index.size()), columns(s.IB() + 1, 0), column_row;
    std::iota(place.begin(), place.end(), 0);
    std::stable_sort(place.begin(), place.end(), [&](int a, int b) { return index[a] / s.TB() < index[b] / s.TB(); });
    for (int e : place) column_row.push_back(row[e]), ++columns[index[e] / s.TB() + 1];
    std::partial_sum(columns.begin(), columns.end(), columns.begin());
    std::vector<int32_t> cell_place(index.size()), cells(codes + 1, 0);
    std::iota(cell_place.begin(), cell_place.end(), 0);
    std::stable_sort(cell_place.begin(), cell_place.end(), [&](int a, int b) { return index[a] < index[b]; });
    for (int code : index) ++cells[code + 1];
    std::partial_sum(cells.begin(), cells.end(), cells.begin());
    for (auto& [to, from] : {std::pair{&indptr_, &indptr},
                             {&index_, &index},
                             {&row_, &row},
                             {&columns_, &columns},
                             {&column_row_, &column_row},
                             {&place_, &place},
                             {&cells_, &cells},
                             {&cell_place_, &cell_place}}) {
      *to = std::make_unique<emu::Buffer<int32_t>>("table", from->size(), emu::Role::input);
      std::copy(from->begin(), from->end(), (*to)->data());
    }
  }
  sk::KeptTables tables() const {
    return {indptr_->data(),     index_->data(), row_->data(),   columns_->data(),
            column_row_->data(), place_->data(), cells_->data(), cell_place_->data()};
  }

  // Calls f(index in x, in weight, in out) for every product of the convolution.
  template <class F>
  void each_product(const sk::SparseConv2dShape& s, const F& f) const {
    const auto at = [&](int64_t channels, int64_t h, int64_t w, int64_t n, int64_t c, int64_t y, int64_t x) {
      return size_t(s.channels_last ? ((n * h + y) * w + x) * channels + c : ((n * channels + c) * h + y) * w + x);
    };
    for (int64_t e = 0; e < s.nnz; ++e)
      for (int64_t w = 0; w < s.BO * s.BI * s.BT; ++w) {
        const int64_t t = w % s.BT, i = w / s.BT % s.BI, o = w / s.BT / s.BI, tap = (*index_)[e] % s.TB() * s.BT + t;
        const int64_t k = (*row_)[e] * s.BO + o, c = (*index_)[e] / s.TB() * s.BI + i;
        for (int64_t n = 0; n < s.N; ++n)
          for (int64_t oy = 0; oy < s.OH(); ++oy)
            for (int64_t ox = 0; ox < s.OW(); ++ox) {
              const int64_t y = oy * s.stride_h + tap / s.KW * s.dilation_h - s.pad_h, x = ox * s.stride_w + tap % s.KW * s.dilation_w - s.pad_w;
              if (y < 0 || y >= s.H || x < 0 || x >= s.W) continue;
              f(at(s.C, s.H, s.W, n, c, y, x), size_t(e * s.BO * s.BI * s.BT + w), at(s.K, s.OH(), s.OW(), n, k, oy, ox));
            }
      }
  }

 private:
  std::unique_ptr<emu::Buffer<int32_t>> indptr_, index_, row_, columns_, column_row_, place_, cells_, cell_place_;
};

}  // namespace check
